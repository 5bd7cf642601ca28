"""The benchmarks: each measures both sides of a ratio in one run, so the machine's speed and noise affect both."""
