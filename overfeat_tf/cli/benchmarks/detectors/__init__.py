"""`overfeat benchmark detectors`: OverFeat beside another detector on the same backbone."""
