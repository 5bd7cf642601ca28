"""The verb `batch`: prediction over any number of images on Apache Beam."""
