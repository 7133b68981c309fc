"""The backlog of one reaction by groups: rows with one value of a column, so that none waits for the end of another's. Asks keys alone.

A pass goes over the values in their order, by an index skip: the least value above the last one. Of each it takes the first few rows, so
that a value with a million rows costs what any other does. Rows without a value come last, some with each pass, in key order. A pass
that took something is followed by another at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, Select, and_, bindparam, literal_column, not_, or_, select, true, tuple_
from sqlalchemy.orm import aliased

from groundstate.engine.question import PrimaryKey, Question, blocking, keeps_own_reaction
from groundstate.rules.blocking import BASELINE
from groundstate.store.tables import attempt
from groundstate.values import keys
from groundstate.values.errors import DeclarationError

VALUES_MOST = 200  # values in one look
IN_VAIN_MOST = 3  # after so many passes that met locked rows alone, all rows are gone through for those behind them
EACH = (1, 4, 16, 64)  # rows of each value in one look: more where there are few values
Cursor = tuple[Any, ...]  # ("by", value) or ("rest",)


class Groups:
    """The statements, of one reaction with `in_order` or `per`."""

    def __init__(self, question: Question) -> None:
        spec = question.spec
        self.question = question
        self.order = spec.in_order
        found: Any = spec.in_order.by if spec.in_order is not None else spec.per
        self.column = found
        self._first_by = (self.order.order,) if self.order is not None and self.order.order is not None else ()
        self._paging: dict[tuple[int, int, bool], Select[Any]] = {}
        self._first: dict[tuple[int, int], Select[Any]] = {}
        if self.order is not None and self.order.past_held and question.text_in_sql is None:
            raise DeclarationError(
                f"reaction {spec.name}: past_held= needs a primary key of one integer or text column (UUID: on PostgreSQL), since held"
                " attempts are told by its text: leave it out"
            )
        if self.ordered and self.order is not None and self.order.past_held and spec.occurrence and question.is_of_this_round is None:
            raise DeclarationError(
                f"reaction {spec.name}: past_held= needs an occurrence of one column, Instant, integer or text, since a record that is held"
                " steps aside in that round alone: leave it out, or give occurrence= such a column"
            )

    @property
    def ordered(self) -> bool:
        """Whether somebody is first in line, and the others wait for him."""
        return bool(self._first_by)

    @property
    def most_of_one(self) -> int:
        """How many rows of one value may be carried out in one transaction: of a part as many as its limit and rate ever allow; of a line
        without a call and in order several, one after another.
        """
        call = self.question.spec.call
        if self.order is None and call is not None:
            at_once, rate = call.outside.limit_per, call.outside.rate_per
            return min(EACH[-1], at_once or EACH[-1], rate.times if rate is not None else EACH[-1])
        return EACH[-1] if self.ordered and call is None and self.question.spec.fact is None else 1

    @property
    def misses_some(self) -> bool:
        """Whether rows behind those that wait for their next try cannot be told by SQL."""
        return self.question.text_in_sql is None and not self.ordered

    def text_of(self, record: Any) -> str | None:
        """The value of a record, as it is named; None where it has none."""
        value = getattr(record, self.column.key)
        return None if value is None else keys.text(value)

    # ---- asked -----------------------------------------------------------------------------------------------------------------
    def of_values(self, connection: Connection, after: tuple[Any, ...], most: int, each: int) -> list[tuple[Any, list[PrimaryKey]]]:
        """So many values, from the beginning or after the one given, with the first keys of each."""
        given = {"most": most, "cursor": after[0]} if after else {"most": most}
        rows = connection.execute(self._paged(each, begins=not after), given).all()
        return [(value, some) for (value,), some in self._lines_in(rows, 1).items()]

    def of_the_rest(self, connection: Connection, after: PrimaryKey, most: int, *, every: bool) -> list[tuple[Any, PrimaryKey]]:
        """Values and keys, in the order of the keys: of rows without a value, or of every one."""
        return [(row[0], tuple(row[1:])) for row in connection.execute(self._resting(after, most, every=every))]

    # ---- who is first in line ----------------------------------------------------------------------------------------------------
    def first_of(self, connection: Connection, wanted: Sequence[PrimaryKey], each: int = 1) -> dict[PrimaryKey, list[PrimaryKey]]:
        """For each of these records, whatever is true of it, the keys of so many that are first in its line."""
        size = len(self.question.key_attributes)
        return self._lines_in(connection.execute(self._firsts(each), self.question.given(wanted)), size)

    def values_of(self, connection: Connection, wanted: Collection[PrimaryKey]) -> dict[PrimaryKey, str]:
        """The values of these records, as they are named; without those that have none."""
        if not wanted:
            return {}
        rows = connection.execute(select(self.column, *self.question.key_attributes).where(self.question.among(list(wanted))))
        return {tuple(row[1:]): keys.text(row[0]) for row in rows if row[0] is not None}

    def first_among(self, connection: Connection, wanted: Collection[PrimaryKey]) -> dict[str, PrimaryKey]:
        """Of each value the first of these records, whatever is true of it."""
        first: dict[str, PrimaryKey] = {}
        rows = connection.execute(
            select(self.column, *self.question.key_attributes).where(self.question.among(list(wanted))).order_by(*self.in_line)
        )
        for row in rows:
            if row[0] is not None:
                first.setdefault(keys.text(row[0]), tuple(row[1:]))
        return first

    # ---- statements ------------------------------------------------------------------------------------------------------------
    def _paged(self, each: int, *, begins: bool) -> Select[Any]:
        which = (self.question.version, each, begins)
        made = self._paging.get(which)
        if made is None:
            made = self._paging[which] = self._build(each, begins=begins)
        return made

    def _build(self, each: int, *, begins: bool) -> Select[Any]:
        cursor = bindparam("cursor", type_=self.column.type)
        first = self.least_after(None if begins else cursor)
        start = select(first.scalar_subquery().label("value"), literal_column("1", Integer).label("n")).cte(
            "groundstate_values", recursive=True
        )
        following = self.least_after(start.c.value).correlate(start).scalar_subquery()
        values = start.union_all(
            select(following, start.c.n + 1).where(start.c.value.is_not(None), start.c.n < bindparam("most", type_=Integer))
        )
        return self._with_lines((values.c.value,), values.c.value, each, values, values.c.n).where(values.c.value.is_not(None))

    def least_after(self, value: Any) -> Select[Any]:
        """The least value above this one, or of all."""
        above = self.column.is_not(None) if value is None else self.column > value
        return select(self.column).where(self.question.ready, above).order_by(self.column).limit(1)

    def line_of(self, value: Any, *columns: Any) -> Select[Any]:
        """These columns of the rows with a value, those that come first first."""
        return select(*columns).where(self._takeable, self.column == value).order_by(*self.in_line)

    def _resting(self, after: PrimaryKey, most: int, *, every: bool) -> Select[Any]:
        """Rows in key order: those without a value, or every one."""
        columns = self.question.key_attributes
        found = select(self.column, *columns).where(self.question.ready)
        if self.question.unattempted is not None:
            found = found.where(self.question.unattempted)
        if not every:
            found = found.where(self.column.is_(None))
        if after:
            kinds = [column.type for column in self.question.mapper.primary_key]
            last = [bindparam(None, value, type_=kind) for value, kind in zip(after, kinds, strict=True)]
            found = found.where(columns[0] > last[0] if len(columns) == 1 else tuple_(*columns) > tuple_(*last))
        return found.order_by(*columns).limit(most)

    def _firsts(self, each: int) -> Select[Any]:
        which = (self.question.version, each)
        made = self._first.get(which)
        if made is None:
            given: Any = aliased(self.question.entity, name="groundstate_given")
            mine = [getattr(given, column.key) for column in self.question.key_attributes]
            found = self._with_lines(mine, getattr(given, self.column.key), each, given, *mine)
            made = self._first[which] = found.where(self.question.among_given(mine))
        return made

    def _with_lines(self, chosen: Sequence[Any], value: Any, each: int, source: Any, *order: Any) -> Select[Any]:
        """These columns of a source with the keys of the first rows with a value of it: a row for each key, or one with all of them.

        PostgreSQL plans each subquery anew, which costs it more than to carry it out; SQLite has no LATERAL.
        """
        own = self.question.key_attributes
        if not self.question.database.locks_rows:
            lines = (self.line_of(value, one).offset(n).limit(1).correlate(source).scalar_subquery() for n in range(each) for one in own)
            return select(*chosen, *lines).order_by(*order)
        places = [column.label(f"groundstate_place_{n}") for n, column in enumerate(self.in_line)]
        columns = [column.label(f"groundstate_key_{n}") for n, column in enumerate(own)]
        line = self.line_of(value, *places, *columns).limit(each).correlate(source).lateral("groundstate_line")
        in_line, found = list(line.c)[: len(places)], list(line.c)[len(places) :]
        return select(*chosen, *found).select_from(source).outerjoin(line, true()).order_by(*order, *in_line)

    def _lines_in(self, rows: Iterable[Any], head: int) -> dict[tuple[Any, ...], list[PrimaryKey]]:
        """The keys in such rows, by the columns that come first."""
        found: dict[tuple[Any, ...], list[PrimaryKey]] = {}
        size = len(self.question.key_attributes)
        for row in rows:
            keys_found = (tuple(row[first : first + size]) for first in range(head, len(row), size))
            found.setdefault(tuple(row[:head]), []).extend(key for key in keys_found if key[0] is not None)
        return found

    @property
    def in_line(self) -> tuple[Any, ...]:
        """Who comes first: in order as it says, and else what has been due for the longest time."""
        return (*self._first_by, *self.question.key_attributes) if self._first_by else self.question.place_attributes

    @property
    def _takeable(self) -> ColumnElement[bool]:
        """In order: who stands in line, whatever stands on him. Else: who has no attempt, so that those behind are reached."""
        also = self._not_stepped_aside if self.ordered else self.question.unattempted
        return self.question.ready if also is None else and_(self.question.ready, also)

    @property
    def _not_stepped_aside(self) -> ColumnElement[bool] | None:
        """Without who is left alone as a baseline, and, `past_held`, who is held and sure: in this round, as far as SQL can say that."""
        written = self.question.text_in_sql
        if written is None:
            return None
        spec = self.question.spec
        aside: Select[Any] = select(literal_column("1")).where(
            attempt.c.app == spec.app,
            attempt.c.reaction == spec.name,
            attempt.c.record == written,
            attempt.c.state == "held",
            ~attempt.c.unsure,
        )
        if self.order is not None and not self.order.past_held:
            aside = aside.where(attempt.c.why == BASELINE)
        if spec.occurrence and (same := self.question.is_of_this_round) is not None:
            of_all = or_(blocking if spec.again else keeps_own_reaction, self.question.left_under_other_rounds)
            aside = aside.where(or_(of_all, same))
        return not_(aside.exists())


@lru_cache(maxsize=256)
def statements(question: Question) -> Groups:
    """Built once. Raises DeclarationError where this database cannot tell what they need."""
    return Groups(question)


@dataclass
class Page:
    """Some keys that may be taken, and how to go on: None where the pass is at its end."""

    keys: list[PrimaryKey] = field(default_factory=list)
    cursor: Cursor | None = None


MayGo = Callable[[str], bool]
LeftOf = Callable[[Sequence[str]], Mapping[str, int]]


def _all_may(_value: str) -> bool:
    return True


def _nothing_known(_values: Sequence[str]) -> Mapping[str, int]:
    return {}


@dataclass
class Round:
    """The passes of one lane, one after another: over the values, and then over some of the rest."""

    groups: Groups
    _going: int = 0  # values of which something could go in the last pass
    _met: int = 0  # the same of this pass, so far
    _read_for_one: int = 1  # so many values are read for each of which something may go
    _rest: PrimaryKey = ()  # where the rest goes on with the next pass, so that the values do not wait for its end
    _every_row: bool = field(init=False)  # the rest is all rows in key order: some could be missed else
    _took: bool = False  # this pass took something
    _number: int = 0  # of this pass
    _in_vain: int = 0  # so many passes before this one took nothing
    _page: dict[PrimaryKey, Any] = field(default_factory=dict)  # the values of the keys that were given last
    _busy: dict[Any, dict[PrimaryKey, int]] = field(default_factory=dict)  # by value: what somebody had locked, and in which pass

    def __post_init__(self) -> None:
        self._every_row = self.groups.misses_some

    def page(
        self, connection: Connection, cursor: Cursor | None, room: int, may_go: MayGo = _all_may, left_of: LeftOf = _nothing_known
    ) -> Page:
        """The next keys of a pass, no more than there is room for.

        may_go: whether anything of this value may be taken now; left_of: how many of each of these, where that is known.
        """
        if cursor is None or cursor[0] == "by":
            return self._by_value(connection, cursor or ("by",), room, may_go, left_of)
        return self._of_the_rest(connection, room, may_go)

    def _by_value(self, connection: Connection, cursor: Cursor, room: int, may_go: MayGo, left_of: LeftOf) -> Page:
        few = self._met < self._going  # no more than in the last pass, as far as it is seen
        each = min(max(room // self._going, 1), self.groups.most_of_one) if few else 1
        values, dense = max(room // each, 1), self._read_for_one == 1
        most = min(max(values * self._read_for_one, 2), VALUES_MOST)  # of two the second tells that it is not the last
        wanted = each + max(map(len, self._busy.values()), default=0)
        deep = next((deep for deep in EACH if deep >= wanted), EACH[-1])
        found = self.groups.of_values(connection, cursor[1:], most, deep if dense else 1)
        going = [(value, some) for value, some in found if some and may_go(keys.text(value))]
        if found:
            self._read_for_one = max(len(found) // len(going), 1) if going else min(self._read_for_one * 4, VALUES_MOST)
        more, going = going[values:], going[:values]
        self._met += len(going)
        if going and deep > 1 and not dense:  # more of the few that may go alone
            firsts = self.groups.first_of(connection, [some[0] for _, some in going], deep)
            going = [(value, firsts.get(some[0], [])) for value, some in going]
        left = left_of([keys.text(value) for value, _ in going]) if going else {}
        free = [self._free(value, some)[: min(each, left.get(keys.text(value), each))] for value, some in going]
        self._page = dict(some[number] for number in range(each) for some in free if number < len(some))  # one of each, then a second
        if more:
            return Page(list(self._page), ("by", going[-1][0]))
        return Page(list(self._page), ("by", found[-1][0]) if len(found) == most else ("rest",))

    def _free(self, value: Any, some: Sequence[PrimaryKey]) -> list[tuple[PrimaryKey, Any]]:
        """Without those that somebody had locked lately."""
        return [(key, value) for key in some if key not in self._busy.get(value, ())]

    def _of_the_rest(self, connection: Connection, room: int, may_go: MayGo) -> Page:
        most = VALUES_MOST if self._every_row else max(room, 1)
        found = self.groups.of_the_rest(connection, self._rest, most, every=self._every_row)
        going = [(key, value) for value, key in found if value is None or may_go(keys.text(value))]
        if len(going) > room:
            self._rest = going[room - 1][0]
        else:
            self._rest = found[-1][1] if len(found) == most else ()
        self._page = dict(going[:room])
        return Page(list(self._page))

    def went(self, *, took: bool, busy: Sequence[PrimaryKey] = ()) -> None:
        """What became of a page. busy: somebody has locked these; those behind them must not wait for him, but in a line."""
        self._took |= took
        for key in busy if self.groups.order is None else ():
            self._busy.setdefault(self._page.get(key), {})[key] = self._number

    def over(self) -> bool:
        """The pass came to its end. Whether another one is to follow: there may be more of what it took, or it left some out.

        What was locked is passed over by the passes that follow, as many as a value has rows in a look, and then tried again.
        """
        self._in_vain = 0 if self._took else self._in_vain + 1
        met_busy = any(number == self._number for some in self._busy.values() for number in some.values())
        walks = bool(self._rest)
        if not walks:
            too_deep = any(len(some) >= EACH[-1] for some in self._busy.values())
            self._every_row = self.groups.misses_some or (met_busy and (too_deep or self._in_vain == IN_VAIN_MOST))
        goes_on = self._took or walks or (met_busy and self._in_vain <= IN_VAIN_MOST)
        self._going, self._met, self._took, self._number = self._met, 0, False, self._number + 1
        kept_since = self._number - EACH[-1] if goes_on else self._number
        busy = {value: {key: number for key, number in some.items() if number >= kept_since} for value, some in self._busy.items()}
        self._busy = {value: some for value, some in busy.items() if some}
        self._in_vain = self._in_vain if goes_on else 0
        return goes_on

    def probe(self, connection: Connection) -> Sequence[Any]:
        """One row to look at, if there is any."""
        return self.groups.of_values(connection, (), 1, 1) or self.groups.of_the_rest(connection, (), 1, every=False)


def round_of(question: Question) -> Round | None:
    """None for a reaction that is gone through in key order."""
    spec = question.spec
    return None if spec.in_order is None and spec.per is None else Round(statements(question))
