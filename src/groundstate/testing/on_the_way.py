"""What becomes of hints on their way: told, lost, doubled, reordered or invented, as a schedule says. Tells nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect

from groundstate.engine.hints import Touched
from groundstate.testing.process import Process

Arriving = tuple[Process, Touched]
_NOBODYS: dict[type, object] = {int: -1, str: "nobody's"}


class Hints:
    """Of one run."""

    def __init__(self, fate: str) -> None:
        self._fate = fate
        self._held_back: list[Arriving] = []

    def arriving(self, process: Process, touched: Touched) -> Sequence[Arriving]:
        """What arrives now that this was told."""
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
    """A hint that says nothing true: of what was touched as if all of it had changed, and of a record that is not there.

    Where no such key is known, of all records.
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
