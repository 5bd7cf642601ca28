"""The verb `predict`: images and videos in, pictures with boxes and JSON out."""
