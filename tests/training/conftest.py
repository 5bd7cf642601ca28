"""Makes the helper modules in this folder importable from the folders below: pytest puts this folder on the path."""
