"""The server under load, batches and abuse, beside the same model in this process."""
