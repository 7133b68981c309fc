"""Declares in which order records with one value are carried out. It holds columns and runs no query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.sql.elements import SQLCoreOperations


@dataclass(frozen=True, eq=False)
class InOrder:
    """Carry out records with equal values of `by` one at a time, in `order` where it is given. Records whose `by` is NULL have no order.

    Args:
        by: the column whose equal values make a queue, such as `Message.conversation_id`.
        order: the column that orders the records of a queue, such as `Message.number`; equal values are ordered by the primary key. With it
            a record waits for every earlier one, also for one that failed and waits for its next try, or is in doubt or held. Without it
            records of one value are carried out one at a time, and one that failed stops no other.
        past_held: a held record does not stop those behind it, as long as it is certain that its call was not made.
    """

    by: SQLCoreOperations[Any]
    order: SQLCoreOperations[Any] | None = None
    past_held: bool = False
