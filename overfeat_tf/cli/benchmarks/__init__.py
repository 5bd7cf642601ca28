"""What is measured, side by side in one run, as ratios: this machine's noise and speed are in both sides."""
