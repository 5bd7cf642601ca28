"""`overfeat benchmark ladder`: train the variants of each of the paper's choices and compare them seed by seed."""
