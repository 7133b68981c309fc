"""Formats the log as JSON for programs, one object in each line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from groundstate.engine.sql.safe_text import safe_str

OURS = ("time", "level", "logger", "event", "message", "traceback")
_OF_ANY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a log record as one line of JSON.

    The fields are `time` (UTC), `level`, `logger`, `event` (only in lines of groundstate), `message`, the fields of the event, and
    `traceback` if there is one. Control characters, and all characters that are not ASCII, are escaped, so data cannot end a line
    or imitate one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        fields = {name: value for name, value in vars(record).items() if name not in _OF_ANY_RECORD and name != "event"}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
        }
        if hasattr(record, "event"):
            line["event"] = record.event
        line["message"] = record.getMessage()
        line |= fields
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=safe_str)
