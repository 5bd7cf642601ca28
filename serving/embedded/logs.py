"""The log of a server that runs for long: each line with its time and level, and a bad message one line."""

import logging

# It says of every message that it cannot read where in whose source, in seven lines.
_NOISY = "grpc._common"


def write_times() -> None:
    """Begins each line that the process logs from now on with the local time and the level."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger(_NOISY).addFilter(_one_line)


def _one_line(record: logging.LogRecord) -> bool:
    """Puts an exception's own words in the place of its traceback."""
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        why = " ".join(str(error).split()) or type(error).__name__
        record.msg, record.args = f"a message that cannot be read: {why}", ()
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = record.exc_text = None
    return True
