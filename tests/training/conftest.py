"""What the tests of training share."""

import pytest
import small_run


@pytest.fixture(scope="module")
def short_shuffle():
    """Fills no large buffers."""
    with small_run.short_shuffle():
        yield
