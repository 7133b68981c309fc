"""Delivers the hints of a run (messages that say which rows changed): as its schedule says, they are told, lost, doubled, reordered or
invented.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect

from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.testing.simulate.sim_process import Process

Arriving = tuple[Process, TouchedRecords]
_NOBODYS: dict[type, object] = {int: -1, str: "nobody's"}  # by type, a primary key value that no record has


class HintDelivery:
    """Delivers the hints of one run. fate: what the schedule says about hints."""

    def __init__(self, fate: str) -> None:
        self._fate = fate
        self._held_back: list[Arriving] = []

    def arriving_hints(self, process: Process, touched: TouchedRecords) -> Sequence[Arriving]:
        """Return the hints that arrive when the process sends a hint for the touched records: none, this hint, or several hints."""
        mine = (process, touched)
        match self._fate:
            case "lost":
                return ()
            case "doubled":
                return (mine, mine)
            case "reordered":
                self._held_back.append(mine)
                if len(self._held_back) < 2:
                    return ()
                arriving, self._held_back = list(reversed(self._held_back)), []
                return arriving
            case "invented":
                return (mine, (process, _invent_hint(touched)))
            case _:
                return (mine,)


def _invent_hint(touched: TouchedRecords) -> TouchedRecords:
    """Return a false hint: it names all of the touched records, and one record that does not exist.

    For a table in which no unused key can be made up, the hint names all records of the table.
    """
    made = TouchedRecords()
    for record in {*touched.keys, *touched.whole}:
        mapper: Any = inspect(record)
        key = tuple(_NOBODYS.get(column.type.python_type) for column in mapper.primary_key)
        if None in key:
            made.add_class(record)
        else:
            made.add(record, [key, *touched.keys.get(record, ())], None)
    return made
