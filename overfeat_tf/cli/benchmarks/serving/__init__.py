"""`overfeat benchmark serve`: a server with one client, under load, and under hostile requests."""
