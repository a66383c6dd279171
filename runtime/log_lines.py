"""What the package's loggers say on standard error, as text or as JSON."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .printable import json_text, sentence

_FIELDS = ("model", "version", "step", "seconds", "found", "answer")
"""Fields that log records of a server carry besides their message."""


class TextFormatter(logging.Formatter):
    """``optserve: message``, on one line and safe to print, and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One record's line."""
        line = f"optserve: {sentence(record.getMessage())}"
        if record.exc_info:
            line += f" ({sentence(self.formatException(record.exc_info))})"
        return line


class JsonFormatter(logging.Formatter):
    """A JSON object per line: time (UTC), level, message, and what the record adds."""

    def format(self, record: logging.LogRecord) -> str:
        """One record's line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {k: getattr(record, k) for k in _FIELDS if hasattr(record, k)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_text(line)


@contextmanager
def log_lines(*, as_json: bool = False) -> Iterator[None]:
    """Inside, the package's log goes to standard error, from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    log = logging.getLogger("optserve")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
