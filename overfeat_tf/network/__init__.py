"""The ConvNet of the paper: presets (Tables 1 and 3), backbones, heads and context."""
