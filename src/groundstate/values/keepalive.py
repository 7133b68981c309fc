"""Holds the settings by which each end of a connection to PostgreSQL notices within about ten seconds that the other end is gone.

CLIENT is for libpq, and SERVER for the session on the server: the server must notice as well, and libpq's settings only serve the client.
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
# Set in this order, each by a statement of its own: a role's own statement_timeout may be too short for setting the others, and an
# operating system may lack one of them.
SERVER: Mapping[str, str] = {
    "statement_timeout": "10000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "idle_session_timeout": "0",
}
