"""The backlog of one reaction by groups: rows with one value of a column, so that none waits for the end of another's. Asks keys alone.

A pass goes over the values in their order, by an index skip: the least value above the last one. Of each it takes the first few rows, so
that a value with a million rows costs what any other does. Rows without a value come last, in key order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, Select, and_, bindparam, literal_column, not_, or_, select, tuple_
from sqlalchemy.orm import aliased

from groundstate.engine.question import PrimaryKey, Question, blocking, keeps_own_reaction
from groundstate.rules.blocking import BASELINE
from groundstate.store.tables import attempt
from groundstate.values import keys
from groundstate.values.errors import DeclarationError

VALUES_MOST = 200  # values that are looked at in one turn
EACH = (1, 4, 16, 64)  # rows of each value in one look: more where there are few values
Cursor = tuple[Any, ...]  # ("by", value) or ("rest", *key)


class Groups:
    """The statements, of one reaction with `in_order` or `per`."""

    def __init__(self, question: Question) -> None:
        spec = question.spec
        self.question = question
        self.order = spec.in_order
        found: Any = spec.in_order.by if spec.in_order is not None else spec.per
        self.column = found
        self._first_by = (self.order.order,) if self.order is not None and self.order.order is not None else ()
        self._paging: dict[tuple[int, bool], Select[Any]] = {}
        self._first: dict[int, Select[Any]] = {}
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
        """How many rows of one value may be carried out in one transaction: without a call and in order, one after another."""
        if self.order is None:
            return EACH[-1]
        return EACH[-1] if self.ordered and self.question.spec.call is None and self.question.spec.fact is None else 1

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
        size = len(self.question.key_attributes)
        return [(row[0], _keys_in(row[1:], size)) for row in rows]

    def of_the_rest(self, connection: Connection, after: PrimaryKey, most: int, *, every: bool) -> list[PrimaryKey]:
        """Keys in their order: of rows without a value, or of every one."""
        return [tuple(row) for row in connection.execute(self._resting(after, most, every=every))]

    # ---- who is first in line ----------------------------------------------------------------------------------------------------
    def first_of(self, connection: Connection, wanted: Sequence[PrimaryKey], each: int = 1) -> dict[PrimaryKey, list[PrimaryKey]]:
        """For each of these records, whatever is true of it, the keys of so many that are first in its line."""
        size = len(self.question.key_attributes)
        rows = connection.execute(self._firsts(each), self.question.given(wanted))
        return {tuple(row[:size]): _keys_in(row[size:], size) for row in rows}

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
        made = self._paging.get((each, begins))
        if made is None:
            made = self._paging[(each, begins)] = self._build(each, begins=begins)
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
        found = self._columns(values.c.value, each, values)
        return select(values.c.value, *found).where(values.c.value.is_not(None)).order_by(values.c.n)

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
        found = select(*columns).where(self.question.ready)
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
        made = self._first.get(each)
        if made is None:
            given: Any = aliased(self.question.entity, name="groundstate_given")
            mine = [getattr(given, column.key) for column in self.question.key_attributes]
            firsts = self._columns(getattr(given, self.column.key), each, given)
            made = self._first[each] = select(*mine, *firsts).where(self.question.among_given(mine))
        return made

    def _columns(self, value: Any, each: int, source: Any) -> list[Any]:
        """The keys of the first rows with a value, as columns of a statement over `source`."""
        return [
            self.line_of(value, one).offset(number).limit(1).correlate(source).scalar_subquery()
            for number in range(each)
            for one in self.question.key_attributes
        ]

    @property
    def in_line(self) -> tuple[Any, ...]:
        """Who comes first: in order as it says, and else what has been due for the longest time."""
        return (*self._first_by, *self.question.key_attributes) if self._first_by else self.question.place_attributes

    @cached_property
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


def _keys_in(columns: Sequence[Any], size: int) -> list[PrimaryKey]:
    found = [tuple(columns[first : first + size]) for first in range(0, len(columns), size)]
    return [key for key in found if key[0] is not None]


@lru_cache(maxsize=256)
def statements(question: Question) -> Groups:
    """Built once. Raises DeclarationError where this database cannot tell what they need."""
    return Groups(question)


@dataclass
class Page:
    """Some keys that may be taken, and how to go on: None where the pass is at its end."""

    keys: list[PrimaryKey] = field(default_factory=list)
    cursor: Cursor | None = None


@dataclass
class Round:
    """The passes of one lane, one after another."""

    groups: Groups
    _every_row: bool = False  # after the values, all rows in key order: some could be missed else
    _values: int = 0  # how many the last pass met
    _met: int = 0

    def page(self, connection: Connection, cursor: Cursor | None, room: int, may_go: Callable[[str], bool]) -> Page:
        """The next keys of a pass, about as many as there is room for. may_go: whether anything of this value may be taken now."""
        if cursor is None:
            self._every_row, self._values, self._met = self.groups.misses_some, self._met, 0
        if cursor is None or cursor[0] == "by":
            return self._by_value(connection, cursor or ("by",), room, may_go)
        most = max(room, 1)
        found = self.groups.of_the_rest(connection, cursor[1:], most, every=self._every_row)
        return Page(found, ("rest", *found[-1]) if len(found) == most else None)

    def _by_value(self, connection: Connection, cursor: Cursor, room: int, may_go: Callable[[str], bool]) -> Page:
        few = self.groups.most_of_one > 1 and self._met < self._values  # no more values than the last pass met, as far as it is seen
        each = next((each for each in EACH if each * self._values >= room), EACH[-1]) if few else 1
        most = max(min(room // each, VALUES_MOST), 1)
        found = self.groups.of_values(connection, cursor[1:], most, each)
        self._met += len(found)
        going = [some for value, some in found if may_go(keys.text(value))]
        taken = [some[number] for number in range(each) for some in going if number < len(some)]  # one of each value, then a second
        return Page(taken, ("by", found[-1][0]) if len(found) == most else ("rest",))

    def probe(self, connection: Connection) -> Sequence[Any]:
        """One row to look at, if there is any."""
        return self.groups.of_values(connection, (), 1, 1) or self.groups.of_the_rest(connection, (), 1, every=False)

    def met_busy(self) -> None:
        """Somebody has locked rows of this pass: those behind them must not wait for him, but in a line."""
        self._every_row = self._every_row or self.groups.order is None


def round_of(question: Question) -> Round | None:
    """None for a reaction that is gone through in key order."""
    spec = question.spec
    return None if spec.in_order is None and spec.per is None else Round(statements(question))
