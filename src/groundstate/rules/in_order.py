"""Declares that a reaction acts on records in order: one at a time on the records with equal values in a column. It runs no query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.sql.elements import SQLCoreOperations


@dataclass(frozen=True, eq=False)
class InOrder:
    """Let the reaction act on the records of one queue one at a time.

    The records with equal values of `by` make a queue. A record whose `by` is NULL is in no queue.

    Args:
        by: the column whose equal values make a queue, such as `Message.conversation_id`.
        order: the column that orders the records of a queue, such as `Message.number`; equal values are ordered by the primary key. If
            `order` is given, a record waits for every earlier record, even if the earlier record has failed, is in doubt or is held. If
            `order` is not given, a failed record stops no other record.
        past_held: whether the records behind a held record need not wait for it. They still wait if the call of the held record may have
        been made.
    """

    by: SQLCoreOperations[Any]
    order: SQLCoreOperations[Any] | None = None
    past_held: bool = False
