"""A network with labels and options: inference on images and batches, runs and SavedModels on disk."""
