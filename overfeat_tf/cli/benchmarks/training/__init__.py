"""`overfeat benchmark train` and `workers`: training against PyTorch, and its data pipeline."""
