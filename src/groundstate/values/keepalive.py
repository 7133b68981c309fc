"""Settings with which both ends of a PostgreSQL connection notice within about ten seconds that the other end is gone.

CLIENT holds arguments for libpq, with which the client notices that the server is gone. SERVER holds settings of the session, with which
the server notices that the client is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLIENT: Mapping[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10000,
}
# Each setting is set by a statement of its own, since the operating system may not support the setting. statement_timeout is set first,
# since the database role may have a statement_timeout that is too short for the other statements.
SERVER: Mapping[str, str] = {
    "statement_timeout": "10000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "idle_session_timeout": "0",
}
