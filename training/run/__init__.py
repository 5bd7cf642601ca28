"""The folder of a run: what it holds, how it is resumed, and what is checked before it begins."""
