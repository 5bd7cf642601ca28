"""Makes the helper modules beside it importable from the rooms beneath: pytest puts this folder on the path."""
