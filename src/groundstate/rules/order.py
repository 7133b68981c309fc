"""In which order records of one value come, as it is declared. Holds columns; asks nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.sql.elements import SQLCoreOperations


@dataclass(frozen=True, eq=False)
class InOrder:
    """One at a time for equal values of `by`, in `order` where given. Records whose `by` is NULL have no order.

    Args:
        by: the column whose equal values make a line, such as `Message.conversation_id`.
        order: the column that says who is first in it, such as `Message.number`; the primary key where values are equal. With it a
            record waits for every earlier one, also for one that failed and waits for its next try, or is in doubt or held. Without it
            records of one value are carried out one at a time, and one that failed stops no other.
        past_held: a held record does not stop those behind it, as long as it is sure that its call was not made.
    """

    by: SQLCoreOperations[Any]
    order: SQLCoreOperations[Any] | None = None
    past_held: bool = False
