"""What is waiting for one reaction, as far as memory knows: fresh keys (hinted), the backlog (swept), and attempts that are due.

Two lanes, so that a million old rows never starve a new one. All of it may be lost: the next sweep finds the same work by query.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from groundstate.engine.concern import concern
from groundstate.engine.groups import Round, round_of
from groundstate.engine.hints import Touched
from groundstate.engine.question import Place, PrimaryKey, Question
from groundstate.engine.raising import Search
from groundstate.rules.breaker import Breaker
from groundstate.rules.usual import Usual

FRESH_MAX = 20_000  # beyond this the backlog takes over
BATCH_FIRST = 200
BATCH_MAX = 500
BATCH_LEAST = 50  # of records that are quick: what a transaction costs is shared among so many
SLOW = 4  # times its aim: then it is the records, and not a machine that is busy just now, which take so long
FAILING_MOST = 20  # different records for which a handler fails, and none that it carries out between: then its reaction pauses
SENDS_FIRST = 8  # of calls with `sends`, of which nobody knows yet how long it takes


@dataclass(eq=False)
class Lane:
    """Of one reaction. `hear` is called from any thread; everything else by the transactions' thread alone."""

    question: Question
    admitted: bool = True  # False while a person must accept it first
    fresh: dict[PrimaryKey, None] = field(default_factory=dict)
    backlog: bool = False
    cursor: Place | None = None
    crowded: bool = False
    look_again: bool = False  # a table that the condition reads was touched while a pass was on
    elsewhere: bool = False  # the next pass begins somewhere in the middle: others begin at its start
    long: bool = False  # a pass was met that is more than this worker's next batch: others are to help
    left_to_others: bool = False  # so many are at the backlog that this worker is to keep out of it
    probed: bool = False  # this pass was seen to have something to take
    newest: bool = False  # a long pass is on: rows written by others meanwhile are looked for at the far end
    due: bool = False
    due_cursor: tuple[Any, ...] | None = None
    seen_full: bool = False  # in this pass attempts that are due were looked at without a free slot
    batch: int = BATCH_FIRST
    aside: bool = False  # its condition takes so long that it is not asked by the worker's own thread
    asking: Usual = field(default_factory=Usual)  # what one look at its condition takes
    next_sweep: float = 0.0
    first_at: int = 0  # the turn in which it was last the first
    failing: Breaker = field(default_factory=lambda: Breaker(in_a_row=FAILING_MOST))  # DB-only reactions (rules.md 15)
    told_failing: float | None = None  # since when the log says that it pauses
    not_before: float = 0.0  # after the database's own trouble
    trouble: int = 0
    barred: str | None = None  # somebody keeps a table of it locked: who, in words
    lacks: str | None = None  # a column or a table that its record has and the database has not, in words
    seen_lacking: bool = False  # loading none of its records tells of that
    search: Search | None = None  # its condition raised: it is looked for the rows for which it does, and nothing else is asked
    plain_s: float = 0.0  # so long after it raised last it is asked plainly again
    raised_at: float = 0.0
    raises_until: float = 0.0  # until then it is not asked, since it raises for too many rows
    asked_again: float = 0.0  # when some of those rows were last asked again
    groups: Round | None = field(init=False)  # of a reaction with `per` or `in_order`: its backlog is gone through by their values
    late: Lane | None = None  # of one with valid_for: what is too late, which goes by itself
    timers: list[float] = field(default_factory=list)  # when the next of its records are ready, by the monotonic clock, the soonest first
    _heard: dict[PrimaryKey, None] = field(default_factory=dict)
    _heard_whole: bool = False
    _spread: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.groups = round_of(self.question)
        if self.question.spec.sends is not None:
            self.batch = SENDS_FIRST

    @property
    def name(self) -> str:
        return self.question.spec.name

    @property
    def on(self) -> bool:
        """Whether its records are carried out by this worker at all: its listeners are asked once a start what they hide."""
        return self.admitted and self.question.filter_raised is None

    def hear(self, touched: Touched, *, shared: bool = False) -> bool:
        """Takes what concerns this reaction; True where something did.

        shared: other workers are at the same backlog. What follows it they find as well, and each would meet the others at single keys:
        so it is gone through by passes that begin here and there.
        """
        found = concern(self.question, touched)
        if shared and touched.of_a_backlog and found.keys:
            self.hear_whole(spread=True)
        else:
            self.hear_keys(found.keys)
        if found.whole:
            self.hear_whole()
        return bool(found)

    def hear_keys(self, keys: Sequence[PrimaryKey]) -> None:
        """These may be there to be carried out."""
        if keys:
            with self._lock:
                self._heard.update(dict.fromkeys(keys))

    def hear_whole(self, *, spread: bool = False) -> None:
        """Some may be. spread: others go through the same backlog, and begin elsewhere."""
        self._spread |= spread
        self._heard_whole = True

    def listen(self) -> bool:
        """Takes over what was heard since; whether anything was."""
        with self._lock:
            some = bool(self._heard)
            if some:
                self.fresh.update(self._heard)
                self._heard = {}
            whole, self._heard_whole = self._heard_whole, False
            spread, self._spread = self._spread, False
        self.elsewhere |= spread and not self.backlog and self.groups is None
        if whole and spread and self.backlog:
            self.look_again, whole = True, False  # what is new is for who was told of it, and not for all who help
        if whole or len(self.fresh) > FRESH_MAX:
            if len(self.fresh) > FRESH_MAX:
                self.fresh.clear()
            self.sweep()
        return some or whole

    def sweep(self) -> None:
        """A new pass over the condition; one that is on goes to its end, and then another begins."""
        if self.backlog:
            self.look_again, self.newest = True, self.groups is None and not self.aside
        else:
            self.backlog, self.cursor, self.crowded, self.probed = True, None, False, False

    def leave_to_others(self) -> None:
        """Keeps out of the backlog. Once it may be gone through again, it is looked at first."""
        if not self.left_to_others:
            self.sweep()
            self.left_to_others, self.newest, self.probed = True, False, False

    def begin_elsewhere(self, connection: Connection, batches: int) -> None:
        """Lets the pass that begins skip some batches; what lies before that is left to others, and to the next pass."""
        self.elsewhere = False
        row = connection.execute(self.question.places_after(None, 1, crowded=True).offset(batches * self.batch)).first()
        if row is not None:
            self.cursor, self.look_again = tuple(row), True

    def swept(self, *, again: bool = False) -> None:
        """A pass came to its end. again: another one follows, which need not be looked at first."""
        self.newest, self.probed = False, again
        self.backlog = self.look_again or again
        self.look_again = False
        self.cursor = None

    def probe(self, connection: Connection) -> Sequence[Any]:
        """One row that a pass would look at, if there is any. Reads alone."""
        if self.groups is not None:
            return self.groups.probe(connection)
        return connection.execute(self.question.places_after(None, 1, crowded=True)).all()

    def start(self) -> None:
        """A person accepted it, or nobody need: it is carried out from now on, and what is too late of it."""
        self.admitted = True
        self.sweep()
        if self.late is not None:
            self.late.start()

    def ring(self, now: float) -> None:
        """Something of it is ready now: a pass that need not be looked at first. One that is on comes to it, going by the due time."""
        self.timers = [at for at in self.timers if at > now]
        if self.backlog:
            self.look_again = True
        else:
            self.sweep()
            self.probed = True

    def take_fresh(self, most: int) -> list[PrimaryKey]:
        taken = [key for key, _ in zip(self.fresh, range(most), strict=False)]
        for key in taken:
            del self.fresh[key]
        return taken

    @property
    def passes(self) -> bool:
        """Whether a pass is on that this worker's own thread is to go on with."""
        return self.on and self.backlog and not (self.left_to_others or self.aside or self.search)

    @property
    def wants(self) -> bool:
        return self.passes or (self.on and bool(self.fresh or self.due or self._heard or self._heard_whole))

    def took(self, count: int, rows_s: float, seconds: float, hold_s: float, *, cut: bool = False) -> None:
        """Adapts the batch so that a write lock is held about `hold_s`: at once where the records are slow, and else by degrees.

        count: of records, which took `rows_s`, in a transaction of so many seconds. cut: it ended in its middle.
        """
        least = 1 if self.aside else BATCH_LEAST  # else the seconds of a few are those of a busy machine, and say little of the records
        if cut or rows_s > SLOW * hold_s:
            self.batch = max(int(count * hold_s / rows_s), 1) if rows_s > hold_s else max(count, 1)
        elif seconds > hold_s and self.batch > least:
            self.batch = max(int(self.batch * max(hold_s / seconds, 0.7)), least)
        elif count * 2 >= self.batch and (seconds if self.batch >= least else rows_s) < hold_s / 2:
            self.batch = min(self.batch * 2, BATCH_MAX)


def lanes_of(question: Question) -> Lane:
    """The lane of a reaction, with that of what is too late where there may be some."""
    return Lane(question, late=None if question.late is None else Lane(question.late))
