"""The log as lines of JSON, for programs: one object a line, whatever is in the words. Decides not what is logged."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from groundstate.engine.guarded import text_of

OURS = ("time", "level", "logger", "event", "message", "traceback")
_OF_ANY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `event` (of our own lines), `message`, the fields of the event, and `traceback` where there is one.

    JSON writes control characters out, and everything beyond ASCII too: nothing from data breaks a line, or looks like one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
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
        return json.dumps(line, ensure_ascii=True, default=text_of)
