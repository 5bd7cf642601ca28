"""Records to batches: views of images, and what their windows learn."""
