"""The `overfeat` command. Only this package may import `training` and `serving`, inside each verb."""

import os

# This must come before the first import of TensorFlow. It hides the notes that TensorFlow logs when it starts; errors
# still come as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from overfeat_tf.cli.main import main

__all__ = ["main"]
