"""Ways of training, fitted side by side and compared seed by seed."""
