"""What happens to hints on their way in a run: told, lost, doubled, reordered or invented, as its schedule says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect

from groundstate.engine.sql.commit_hooks import Touched
from groundstate.testing.simulate.sim_process import Process

Arriving = tuple[Process, Touched]
_NOBODYS: dict[type, object] = {int: -1, str: "nobody's"}  # primary key values that no record has


class Hints:
    """The hints of one run, delivered as the schedule says."""

    def __init__(self, fate: str) -> None:
        self._fate = fate
        self._held_back: list[Arriving] = []

    def arriving(self, process: Process, touched: Touched) -> Sequence[Arriving]:
        """Return the hints that arrive now that this one was sent."""
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
                return (mine, (process, _invented(touched)))
            case _:
                return (mine,)


def _invented(touched: Touched) -> Touched:
    """Return a false hint: it claims that all of the touched records changed, and one that does not exist.

    Where no unused key can be made for a table, the hint names all of its records.
    """
    made = Touched()
    for record in {*touched.keys, *touched.whole}:
        mapper: Any = inspect(record)
        key = tuple(_NOBODYS.get(column.type.python_type) for column in mapper.primary_key)
        if None in key:
            made.add_whole(record)
        else:
            made.add(record, [key, *touched.keys.get(record, ())], None)
    return made
