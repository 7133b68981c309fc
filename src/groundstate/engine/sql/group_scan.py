"""Reads the backlog of one reaction by groups (rows with one value of a column), so that no group waits for the end of another. Selects
only keys.

A pass goes over the values in their order, by an index skip: it selects the least value above the last one. Of each value it takes the
first few rows, so that a value with a million rows costs what any other does. Rows without a value come last, some with each pass, in key
order. A pass that took something is followed by another at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import aliased

from groundstate.engine.sql.condition_query import ConditionQuery, PrimaryKey, blocking, keeps_own_reaction
from groundstate.engine.sql.key_columns import as_it_stands
from groundstate.rules.blocking import BASELINE
from groundstate.store.tables import attempt
from groundstate.values import keys
from groundstate.values.errors import DeclarationError
from groundstate.values.keys import BytesOfText, NoValue

VALUES_MOST = 200  # values that one statement reads
IN_VAIN_MOST = 3  # passes that met only locked rows: after these, all rows are read in key order, to find those behind them
EACH = (1, 4, 16, 64)  # rows of each value that one statement reads: more where there are few values
Cursor = tuple[Any, ...]  # ("by", the last value) or ("rest",), which begins the rows without a value


class Groups:
    """The statements that read the groups of one reaction with `in_order` or `per`."""

    def __init__(self, query: ConditionQuery) -> None:
        spec = query.spec
        self.query = query
        self.order = spec.in_order
        found: Any = spec.in_order.by if spec.in_order is not None else spec.per
        self.column = found
        self._shown: Any = as_it_stands(
            found, query.database.engine.dialect, alone=False
        )  # a value that is no text must not hide the others
        self._first_by = (self.order.order,) if self.order is not None and self.order.order is not None else ()
        self._paging: dict[tuple[int, int, bool, bool], Select[Any]] = {}
        self._first: dict[tuple[int, int], Select[Any]] = {}
        if self.order is not None and self.order.past_held and query.text_in_sql is None:
            raise DeclarationError(
                f"reaction {spec.name}: past_held= needs a primary key of one integer or text column (UUID: on PostgreSQL), since held"
                " attempts are told by its text: leave it out"
            )
        if self.ordered and self.order is not None and self.order.past_held and spec.occurrence and query.is_of_this_round is None:
            raise DeclarationError(
                f"reaction {spec.name}: past_held= needs an occurrence of one column, UtcDateTime, integer or text, since a record that is"
                " held"
                " steps aside in that round alone: leave it out, or give occurrence= such a column"
            )

    @property
    def ordered(self) -> bool:
        """Whether the rows of one value must be carried out in order, so that all wait for the first."""
        return bool(self._first_by)

    @property
    def most_of_one(self) -> int:
        """Return how many rows of one value may be carried out in one transaction.

        For a call with `per` they are as many as the external service's limit and rate for one tenant ever permit. Otherwise it is one row,
        except where an order column sorts the rows and the reaction has neither a call nor a done column: then they are carried out one
        after another.
        """
        call = self.query.spec.call
        if self.order is None and call is not None:
            at_once, rate = call.service.limit_per, call.service.rate_per
            return min(EACH[-1], at_once or EACH[-1], rate.times if rate is not None else EACH[-1])
        return EACH[-1] if self.ordered and call is None and self.query.spec.done_column is None else 1

    @property
    def misses_some(self) -> bool:
        """Whether SQL cannot exclude rows that have attempts, so that rows behind those that wait for a retry may be missed."""
        return self.query.text_in_sql is None and not self.ordered

    def text_of(self, record: Any) -> str | None:
        """Return the canonical text of a record's value; None where it has none."""
        value = getattr(record, self.column.key)
        return None if value is None else keys.text(value)

    # ---- read ------------------------------------------------------------------------------------------------------------------
    def of_values(self, connection: Connection, after: tuple[Any, ...], most: int, each: int) -> list[tuple[Any, list[PrimaryKey]]]:
        """Return values above the one in `after`, or from the least on, at most `most`, each with the keys of its first `each` rows."""
        given: dict[str, Any] = {"most": most, "cursor": after[0]} if after else {"most": most}
        raw = False
        if after and isinstance(after[0], NoValue):
            stands = after[0].raw
            raw = isinstance(stands, str | BytesOfText)
            given["cursor"] = stands.encode() if isinstance(stands, str) else stands
        rows = connection.execute(self._paged(each, begins=not after, raw=raw), given).all()
        return [(_loaded(value), some) for (value,), some in self._lines_in(rows, 1).items()]

    def of_the_rest(self, connection: Connection, after: PrimaryKey, most: int, *, every: bool) -> list[tuple[Any, PrimaryKey]]:
        """Return values and keys in the order of the keys, after the key given: of every row, or only of rows without a value."""
        return [(_loaded(row[0]), tuple(row[1:])) for row in connection.execute(self._resting(after, most, every=every))]

    # ---- first rows of a value -----------------------------------------------------------------------------------------------------
    def first_of(self, connection: Connection, wanted: Sequence[PrimaryKey], each: int = 1) -> dict[PrimaryKey, list[PrimaryKey]]:
        """Return, for each of these records, the first `each` keys with the record's value, whether the record itself is ready or not."""
        size = len(self.query.key_attributes)
        return self._lines_in(connection.execute(self._firsts(each), self.query.given(wanted)), size)

    def values_of(self, connection: Connection, wanted: Collection[PrimaryKey]) -> dict[PrimaryKey, str]:
        """Return the canonical texts of these records' values. Records without a value are left out."""
        if not wanted:
            return {}
        rows = connection.execute(select(self._shown, *self.query.key_attributes).where(self.query.among(list(wanted))))
        return {tuple(row[1:]): keys.text(_loaded(row[0])) for row in rows if row[0] is not None}

    def first_among(self, connection: Connection, wanted: Collection[PrimaryKey]) -> dict[str, PrimaryKey]:
        """Return, of each value, the first of these records in the order in which they are carried out, whether it is ready or not."""
        first: dict[str, PrimaryKey] = {}
        rows = connection.execute(
            select(self._shown, *self.query.key_attributes).where(self.query.among(list(wanted))).order_by(*self.in_line)
        )
        for row in rows:
            if row[0] is not None:
                first.setdefault(keys.text(_loaded(row[0])), tuple(row[1:]))
        return first

    # ---- statements ------------------------------------------------------------------------------------------------------------
    def _paged(self, each: int, *, begins: bool, raw: bool) -> Select[Any]:
        which = (self.query.version, each, begins, raw)
        made = self._paging.get(which)
        if made is None:
            made = self._paging[which] = self._build(each, begins=begins, raw=raw)
        return made

    def _build(self, each: int, *, begins: bool, raw: bool) -> Select[Any]:
        """Build `_paged`. raw: the cursor is text of which the column's type makes no value, as bytes."""
        cursor: Any = cast(bindparam("cursor", type_=LargeBinary()), Text()) if raw else bindparam("cursor", type_=self.column.type)
        first = self.least_after(None if begins else cursor)
        start = select(first.scalar_subquery().label("value"), literal_column("1", Integer).label("n")).cte(
            "groundstate_values", recursive=True
        )
        following = self.least_after(start.c.value).correlate(start).scalar_subquery()
        values = start.union_all(
            select(following, start.c.n + 1).where(start.c.value.is_not(None), start.c.n < bindparam("most", type_=Integer))
        )
        shown = as_it_stands(values.c.value, self.query.database.engine.dialect, alone=False)
        return self._with_lines((shown,), values.c.value, each, values, values.c.n).where(values.c.value.is_not(None))

    def least_after(self, value: Any) -> Select[Any]:
        """Select the least value above this one, or the least of all where it is None."""
        above = self.column.is_not(None) if value is None else self.column > value
        return select(self.column).where(self.query.ready, above).order_by(self.column).limit(1)

    def line_of(self, value: Any, *columns: Any) -> Select[Any]:
        """Select these columns of the rows with this value, in the order in which they are to be carried out."""
        return select(*columns).where(self._takeable, self.column == value).order_by(*self.in_line)

    def _resting(self, after: PrimaryKey, most: int, *, every: bool) -> Select[Any]:
        """Select rows in key order: all rows, or only those without a value."""
        columns = self.query.key_attributes
        found = select(self._shown, *columns).where(self.query.ready)
        if self.query.unattempted is not None:
            found = found.where(self.query.unattempted)
        if not every:
            found = found.where(self.column.is_(None))
        if after:
            kinds = [column.type for column in self.query.mapper.primary_key]
            last = [bindparam(None, value, type_=kind) for value, kind in zip(after, kinds, strict=True)]
            found = found.where(columns[0] > last[0] if len(columns) == 1 else tuple_(*columns) > tuple_(*last))
        return found.order_by(*columns).limit(most)

    def _firsts(self, each: int) -> Select[Any]:
        which = (self.query.version, each)
        made = self._first.get(which)
        if made is None:
            given: Any = aliased(self.query.entity, name="groundstate_given")
            mine = [getattr(given, column.key) for column in self.query.key_attributes]
            found = self._with_lines(mine, getattr(given, self.column.key), each, given, *mine)
            made = self._first[which] = found.where(self.query.among_given(mine))
        return made

    def _with_lines(self, chosen: Sequence[Any], value: Any, each: int, source: Any, *order: Any) -> Select[Any]:
        """Select columns of a source with the keys of the first rows for its value: one row for each key on PostgreSQL, one with all keys
        on SQLite.

        PostgreSQL plans each subquery anew, which takes longer than to execute it; SQLite has no LATERAL.
        """
        own = self.query.key_attributes
        if not self.query.database.locks_rows:
            lines = (self.line_of(value, one).offset(n).limit(1).correlate(source).scalar_subquery() for n in range(each) for one in own)
            return select(*chosen, *lines).order_by(*order)
        places = [column.label(f"groundstate_place_{n}") for n, column in enumerate(self.in_line)]
        columns = [column.label(f"groundstate_key_{n}") for n, column in enumerate(own)]
        line = self.line_of(value, *places, *columns).limit(each).correlate(source).lateral("groundstate_line")
        in_line, found = list(line.c)[: len(places)], list(line.c)[len(places) :]
        return select(*chosen, *found).select_from(source).outerjoin(line, true()).order_by(*order, *in_line)

    def _lines_in(self, rows: Iterable[Any], head: int) -> dict[tuple[Any, ...], list[PrimaryKey]]:
        """Return the keys in rows of `_with_lines`, grouped by the first `head` columns."""
        found: dict[tuple[Any, ...], list[PrimaryKey]] = {}
        size = len(self.query.key_attributes)
        for row in rows:
            keys_found = (tuple(row[first : first + size]) for first in range(head, len(row), size))
            found.setdefault(tuple(row[:head]), []).extend(key for key in keys_found if key[0] is not None)
        return found

    @property
    def in_line(self) -> tuple[Any, ...]:
        """Return the columns that sort the rows of one value: the order column of `in_order`, or the due time, and then the primary key."""
        return (*self._first_by, *self.query.key_attributes) if self._first_by else self.query.place_attributes

    @property
    def _takeable(self) -> ColumnElement[bool]:
        """Return the SQL condition that a row is among those that are read for its value.

        With an order column that includes ready rows with attempts, since the others wait behind them. Without one it excludes them, so
        that the rows behind them are reached.
        """
        also = self._not_stepped_aside if self.ordered else self.query.unattempted
        return self.query.ready if also is None else and_(self.query.ready, also)

    @property
    def _not_stepped_aside(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that no held attempt takes the row out of its line; None where SQL cannot tell.

        A baseline (a record that matched before its reaction was introduced) is out of line, and with `past_held` any record with a held
        attempt that is not in doubt: for the present occurrence only, as far as SQL can tell it.
        """
        written = self.query.text_in_sql
        if written is None:
            return None
        spec = self.query.spec
        aside: Select[Any] = select(literal_column("1")).where(
            attempt.c.app == spec.app,
            attempt.c.reaction == spec.name,
            attempt.c.record == written,
            attempt.c.state == "held",
            ~attempt.c.unsure,
        )
        if self.order is not None and not self.order.past_held:
            aside = aside.where(attempt.c.why == BASELINE)
        if spec.occurrence and (same := self.query.is_of_this_round) is not None:
            of_all = or_(blocking if spec.repeats else keeps_own_reaction, self.query.left_under_other_rounds)
            aside = aside.where(or_(of_all, same))
        return not_(aside.exists())


def _loaded(value: Any) -> Any:
    """Return the value of a group as its type loads it, in whatever form it stands; text that is not UTF-8 stays a NoValue."""
    return value.loaded if isinstance(value, NoValue) and value.loaded is not None else value


@lru_cache(maxsize=256)
def statements(query: ConditionQuery) -> Groups:
    """Return the statements for this condition query, built once. Raises DeclarationError where the database cannot express them."""
    return Groups(query)


@dataclass
class Page:
    """Some keys that may be taken, and the cursor to go on from, which is None at the end of the pass."""

    keys: list[PrimaryKey] = field(default_factory=list)
    cursor: Cursor | None = None


MayGo = Callable[[str], bool]
LeftOf = Callable[[Sequence[str]], Mapping[str, int]]


def _all_may(_value: str) -> bool:
    return True


def _nothing_known(_values: Sequence[str]) -> Mapping[str, int]:
    return {}


@dataclass
class GroupPasses:
    """The passes over one work queue, one after another: each goes over the values, and then over some of the rest."""

    groups: Groups
    _going: int = 0  # values with rows that could be sent in the last pass
    _met: int = 0  # values with rows that could be sent in this pass, so far
    _read_for_one: int = 1  # values that are read to find one with rows that may be sent
    _rest: PrimaryKey = ()  # key after which the next pass reads on in the rest, so that the values do not wait for its end
    _every_row: bool = field(init=False)  # whether the rest is all rows in key order, since some could be missed otherwise
    _took: bool = False  # whether this pass took something
    _number: int = 0  # number of this pass
    _in_vain: int = 0  # consecutive passes before this one that took nothing
    _page: dict[PrimaryKey, Any] = field(default_factory=dict)  # key -> value, for the keys of the last page
    _busy: dict[Any, dict[PrimaryKey, int]] = field(default_factory=dict)  # value -> keys that were locked, and in which pass

    def __post_init__(self) -> None:
        self._every_row = self.groups.misses_some

    def page(
        self, connection: Connection, cursor: Cursor | None, room: int, may_go: MayGo = _all_may, left_of: LeftOf = _nothing_known
    ) -> Page:
        """Return the next keys of a pass, at most `room`.

        may_go: whether any record of this value may be taken now. left_of: how many records of each of these values may be taken, where
        that is limited.
        """
        if cursor is None or cursor[0] == "by":
            return self._by_value(connection, cursor or ("by",), room, may_go, left_of)
        return self._of_the_rest(connection, room, may_go)

    def _by_value(self, connection: Connection, cursor: Cursor, room: int, may_go: MayGo, left_of: LeftOf) -> Page:
        few = self._met < self._going  # this pass has met fewer values than the last one
        each = min(max(room // self._going, 1), self.groups.most_of_one) if few else 1
        values, dense = max(room // each, 1), self._read_for_one == 1
        most = min(max(values * self._read_for_one, 2), VALUES_MOST)  # at least two, since the second shows that the first is not the last
        wanted = each + max(map(len, self._busy.values()), default=0)
        deep = next((deep for deep in EACH if deep >= wanted), EACH[-1])
        found = self.groups.of_values(connection, cursor[1:], most, deep if dense else 1)
        going = [(value, some) for value, some in found if some and may_go(keys.text(value))]
        if found:
            self._read_for_one = max(len(found) // len(going), 1) if going else min(self._read_for_one * 4, VALUES_MOST)
        more, going = going[values:], going[:values]
        self._met += len(going)
        if going and deep > 1 and not dense:  # read more rows of the few values that may be sent
            firsts = self.groups.first_of(connection, [some[0] for _, some in going], deep)
            going = [(value, firsts.get(some[0], [])) for value, some in going]
        left = left_of([keys.text(value) for value, _ in going]) if going else {}
        free = [self._free(value, some)[: min(each, left.get(keys.text(value), each))] for value, some in going]
        # One key of each value, then a second key of each.
        self._page = dict(some[number] for number in range(each) for some in free if number < len(some))
        if more:
            return Page(list(self._page), ("by", going[-1][0]))
        return Page(list(self._page), ("by", found[-1][0]) if len(found) == most else ("rest",))

    def _free(self, value: Any, some: Sequence[PrimaryKey]) -> list[tuple[PrimaryKey, Any]]:
        """Return those of the keys that were not found locked lately, each with its value."""
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
        """Note what became of a page. busy: keys that another transaction has locked; rows behind them must not wait, unless they are in
        order.
        """
        self._took |= took
        for key in busy if self.groups.order is None else ():
            self._busy.setdefault(self._page.get(key), {})[key] = self._number

    def over(self) -> bool:
        """End the pass, and return whether another one is to follow: there may be more of what it took, or it left some rows out.

        Rows that were locked are left out of up to EACH[-1] following passes, and are then tried again.
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
        """Return one row to try, if there is any."""
        return self.groups.of_values(connection, (), 1, 1) or self.groups.of_the_rest(connection, (), 1, every=False)


def round_of(query: ConditionQuery) -> GroupPasses | None:
    """Return the passes for a reaction with `in_order` or `per`; None for one whose backlog is read in key order."""
    spec = query.spec
    return None if spec.in_order is None and spec.per is None else GroupPasses(statements(query))
