"""The `overfeat` command; the only package that may import upward, inside each verb."""

import os

# Before TensorFlow is first imported: its notes on start-up are no use at the command line, and its errors come as
# exceptions too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from overfeat_tf.cli.main import main

__all__ = ["main"]
