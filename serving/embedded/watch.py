"""Runs of signatures that nobody waits for any more are cut off: past the deadline, or with the client gone."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from tensorflow.python.eager import cancellation

# How often what runs is looked at: so much longer than its deadline it may take, and no request is held up.
_LOOK_SECONDS = 0.05
# After so many looks at nothing the thread ends: starting one takes as long as a small request, so not at once.
_IDLE_LOOKS = 200

_managers = threading.local()
_process_wide = cancellation.context


def _context() -> cancellation.CancellationManager | None:
    return getattr(_managers, "active", None) or _process_wide()


# TensorFlow asks this function, at the start of each run, what may cancel it; its own answer is one for the whole
# process, so that the requests of one thread would run under the manager of another's.
cancellation.context = _context


class Watch:
    """Looks at the runs that are under way, and cancels those that are not wanted; safe to use from any thread."""

    def __init__(self) -> None:
        """Has nothing to look at yet; the thread that looks is there only while there are requests."""
        self._changed = threading.Condition()
        self._running: dict[cancellation.CancellationManager, Callable[[], None]] = {}
        self._looking = False

    @contextlib.contextmanager
    def over(self, require_wanted: Callable[[], None]) -> Iterator[None]:
        """Cuts off what the block runs, in this thread, once it is not wanted.

        A run ends between two of its operations; what is no graph of TensorFlow's goes on to its end.

        Args:
            require_wanted: raises the Refusal that the caller gets where nobody waits any more; called by any thread.

        Raises:
            Refusal: the run was cut off.
        """
        manager = cancellation.CancellationManager()
        self._begin(manager, require_wanted)
        _managers.active = manager
        try:
            yield
        except Exception:
            if manager.is_cancelled:  # then it says so in one way or another
                require_wanted()
            raise
        finally:
            _managers.active = None
            with self._changed:
                del self._running[manager]
                self._changed.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Waits until nothing runs; returns whether that came within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    def _begin(self, manager: cancellation.CancellationManager, require_wanted: Callable[[], None]) -> None:
        with self._changed:
            self._running[manager] = require_wanted
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="watch", daemon=True).start()

    def _look(self) -> None:
        idle = 0
        while True:
            time.sleep(_LOOK_SECONDS)
            with self._changed:
                idle = 0 if self._running else idle + 1
                if idle >= _IDLE_LOOKS:
                    self._looking = False
                    return
                running = list(self._running.items())
            for manager, require_wanted in running:
                try:
                    require_wanted()
                except Exception:
                    manager.start_cancel()
            del running
