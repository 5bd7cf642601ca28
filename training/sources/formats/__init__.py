"""The formats that data comes in, a file each: all give `training.sources.record.Record`."""
