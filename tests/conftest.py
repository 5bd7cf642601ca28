"""What all tests share."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Let the processes of `make test` run their graphs as they are.

    Grappler takes a fifth of the time of a suite whose graphs run once or twice. The processes that tests start
    optimise theirs, as do users and `make test-all`.
    """
    if hasattr(config, "workerinput") and config.option.markexpr == "not long":
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
