"""How soon one end of a connection to PostgreSQL misses the other: within some ten seconds, whoever connects and for what.

CLIENT is for libpq, SERVER for the session's own settings there: the server must notice as well, and libpq's do the other direction alone.
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
# In this order, and each by itself: a role's own time for a statement may be shorter than the others take, and a system may lack one.
SERVER: Mapping[str, str] = {
    "statement_timeout": "10000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "idle_session_timeout": "0",
}
