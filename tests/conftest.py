"""What the quick tests do without."""

import sys

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave graphs as they are where the long tests are left out: most graphs are run once or twice.

    Optimizing them was a quarter of the time of the tests of exports. `make test-all`, and the processes that tests
    start, optimize.
    """
    if "not long" in session.config.option.markexpr and (tensorflow := sys.modules.get("tensorflow")):
        tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
