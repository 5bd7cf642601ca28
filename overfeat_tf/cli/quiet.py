"""TensorFlow's first words, kept off the terminal."""

import os


def load_tensorflow() -> None:
    """Import TensorFlow and start it, without the notes that it writes to stderr before logging can be set.

    They come from C++ and heed no setting, hence the detour by the file descriptor. What goes wrong still comes as
    an exception.
    """
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        if not os.environ.get("TF_CONFIG"):  # several workers have to be joined first
            tf.config.list_logical_devices()
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
