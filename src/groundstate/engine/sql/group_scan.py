"""Reads the backlog of one reaction group by group, so that no group has to wait until another group is finished. Selects only keys.

A group is all rows with the same value of one column. A pass (one reading of the whole backlog) visits the values in ascending order: it
selects the least value above the last one, as an index skip scan does, and takes the first few rows with that value. So a value with a
million rows costs no more than any other. Rows without a value come last. Each pass reads some of them, in key order. After a pass that
took something, the next pass follows at once.
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

from groundstate.engine.sql.attempt_filters import is_blocking, is_blocking_own_reaction
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.key_columns import column_as_stored
from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.rules.blocking import BASELINE
from groundstate.store.tables import attempt
from groundstate.values import keys
from groundstate.values.errors import DeclarationError
from groundstate.values.keys import BytesOfText, NoValue

VALUES_MOST = 200  # the most values that one statement reads
IN_VAIN_MOST = 3  # if this many passes in a row found only locked rows, the next pass also reads all rows in key order
EACH = (1, 4, 16, 64)  # how many rows of each value one statement may read: the smallest of these numbers that suffices
Cursor = tuple[Any, ...]  # ("by", last value read), or ("rest",) for the rows without a value


class GroupStatements:
    """The statements that read the groups (rows with the same value) of one reaction with `in_order` or `per`."""

    def __init__(self, query: ConditionQuery) -> None:
        spec = query.spec
        self.query = query
        self.order = spec.in_order
        found: Any = spec.in_order.by if spec.in_order is not None else spec.per
        self.column = found
        # A value that cannot be loaded must not make the whole query fail.
        self._shown: Any = column_as_stored(found, query.database.engine.dialect, alone=False)
        self._first_by = (self.order.order,) if self.order is not None and self.order.order is not None else ()
        self._paging: dict[tuple[int, int, bool, bool], Select[Any]] = {}
        self._first: dict[tuple[int, int], Select[Any]] = {}
        if self.order is not None and self.order.past_held and query.keys.key_text_in_sql is None:
            raise DeclarationError(
                f"reaction {spec.name}: past_held= needs a primary key of one integer or text column (UUID: on PostgreSQL), since held"
                " attempts are told by its text: leave it out"
            )
        if (
            self.must_keep_order
            and self.order is not None
            and self.order.past_held
            and spec.occurrence
            and query.attempts.is_attempt_of_this_occurrence is None
        ):
            raise DeclarationError(
                f"reaction {spec.name}: past_held= needs an occurrence of one column, UtcDateTime, integer or text, since a record that is"
                " held"
                " steps aside in that round alone: leave it out, or give occurrence= such a column"
            )

    @property
    def must_keep_order(self) -> bool:
        """Whether rows with the same value must be carried out in order, so that all later rows wait for the first."""
        return bool(self._first_by)

    @property
    def most_rows_of_group(self) -> int:
        """How many rows with the same value may be carried out in one transaction.

        For a call with `per`: as many as the external service's limit and rate for one tenant permit. For a reaction that has an order
        column, but no call and no done column: several rows, one after another. In all other cases: one row.
        """
        call = self.query.spec.call
        if self.order is None and call is not None:
            at_once, rate = call.service.limit_per, call.service.rate_per
            return min(EACH[-1], at_once or EACH[-1], rate.times if rate is not None else EACH[-1])
        return EACH[-1] if self.must_keep_order and call is None and self.query.spec.done_column is None else 1

    @property
    def may_miss_rows(self) -> bool:
        """Whether a pass may miss rows. It may if SQL cannot exclude rows with attempts: if all the first rows of a group wait for a retry,
        the pass does not reach the rows behind them.
        """
        return self.query.keys.key_text_in_sql is None and not self.must_keep_order

    def group_text_of(self, record: Any) -> str | None:
        """Return the canonical text of the value that puts this record into its group; None if the record has no value."""
        value = getattr(record, self.column.key)
        return None if value is None else keys.canonical_text(value)

    # ---- read ------------------------------------------------------------------------------------------------------------------
    def read_groups(self, connection: Connection, after: tuple[Any, ...], most: int, each: int) -> list[tuple[Any, list[PrimaryKey]]]:
        """Return at most `most` pairs (value, keys of its first `each` rows), for the values above the one in `after`, in ascending order.
        If `after` has no value, begin with the least value.
        """
        given: dict[str, Any] = {"most": most, "cursor": after[0]} if after else {"most": most}
        raw = False
        if after and isinstance(after[0], NoValue):
            stands = after[0].raw
            raw = isinstance(stands, str | BytesOfText)
            given["cursor"] = stands.encode() if isinstance(stands, str) else stands
        rows = connection.execute(self._page_statement(each, begins=not after, raw=raw), given).all()
        return [(_value_as_loaded(value), some) for (value,), some in self._first_keys_in(rows, 1).items()]

    def read_in_key_order(self, connection: Connection, after: PrimaryKey, most: int, *, every: bool) -> list[tuple[Any, PrimaryKey]]:
        """Return at most `most` pairs (value, key) in key order, after the given key. With `every`, read all rows; otherwise only the rows
        without a value.
        """
        return [
            (_value_as_loaded(row[0]), tuple(row[1:])) for row in connection.execute(self._select_in_key_order(after, most, every=every))
        ]

    # ---- first rows of a value -----------------------------------------------------------------------------------------------------
    def first_keys_in_group_of(
        self, connection: Connection, wanted: Sequence[PrimaryKey], each: int = 1
    ) -> dict[PrimaryKey, list[PrimaryKey]]:
        """Return a dict from each of these records to the first `each` keys of its group. The record itself need not be ready."""
        size = len(self.query.keys.key_attributes)
        return self._first_keys_in(connection.execute(self._first_keys_statement(each), self.query.keys.key_parameters(wanted)), size)

    def group_texts_of(self, connection: Connection, wanted: Collection[PrimaryKey]) -> dict[PrimaryKey, str]:
        """Return a dict from key to the canonical text of the record's value. Records without a value are left out."""
        if not wanted:
            return {}
        rows = connection.execute(select(self._shown, *self.query.keys.key_attributes).where(self.query.keys.has_key_among(list(wanted))))
        return {tuple(row[1:]): keys.canonical_text(_value_as_loaded(row[0])) for row in rows if row[0] is not None}

    def first_key_of_each_group(self, connection: Connection, wanted: Collection[PrimaryKey]) -> dict[str, PrimaryKey]:
        """For each value that these records have, find the record that is first in order, even if it is not ready. Return a dict from the
        value's text to the key of that record.
        """
        first: dict[str, PrimaryKey] = {}
        rows = connection.execute(
            select(self._shown, *self.query.keys.key_attributes)
            .where(self.query.keys.has_key_among(list(wanted)))
            .order_by(*self.order_within_group)
        )
        for row in rows:
            if row[0] is not None:
                first.setdefault(keys.canonical_text(_value_as_loaded(row[0])), tuple(row[1:]))
        return first

    # ---- statements ------------------------------------------------------------------------------------------------------------
    def _page_statement(self, each: int, *, begins: bool, raw: bool) -> Select[Any]:
        """Return the statement of `read_groups`; it is built once and cached."""
        which = (self.query.version, each, begins, raw)
        made = self._paging.get(which)
        if made is None:
            made = self._paging[which] = self._build_page_statement(each, begins=begins, raw=raw)
        return made

    def _build_page_statement(self, each: int, *, begins: bool, raw: bool) -> Select[Any]:
        """Build the statement of `read_groups`.

        begins: Whether there is no cursor yet. raw: Whether the cursor is passed as bytes, since its text is not a valid value of the
            column's type.
        """
        cursor: Any = cast(bindparam("cursor", type_=LargeBinary()), Text()) if raw else bindparam("cursor", type_=self.column.type)
        first = self.select_least_value_after(None if begins else cursor)
        start = select(first.scalar_subquery().label("value"), literal_column("1", Integer).label("n")).cte(
            "groundstate_values", recursive=True
        )
        following = self.select_least_value_after(start.c.value).correlate(start).scalar_subquery()
        values = start.union_all(
            select(following, start.c.n + 1).where(start.c.value.is_not(None), start.c.n < bindparam("most", type_=Integer))
        )
        shown = column_as_stored(values.c.value, self.query.database.engine.dialect, alone=False)
        return self._select_with_first_keys((shown,), values.c.value, each, values, values.c.n).where(values.c.value.is_not(None))

    def select_least_value_after(self, value: Any) -> Select[Any]:
        """Return a statement that selects the least value above `value`, or the least value of all if `value` is None."""
        above = self.column.is_not(None) if value is None else self.column > value
        return select(self.column).where(self.query.condition.is_ready, above).order_by(self.column).limit(1)

    def select_rows_of_value(self, value: Any, *columns: Any) -> Select[Any]:
        """Return a statement that selects these columns of the rows with this value, in the order in which the rows are carried out."""
        return select(*columns).where(self._is_read_for_group, self.column == value).order_by(*self.order_within_group)

    def _select_in_key_order(self, after: PrimaryKey, most: int, *, every: bool) -> Select[Any]:
        """Return a statement that selects rows in key order: with `every` all rows, otherwise only the rows without a value."""
        columns = self.query.keys.key_attributes
        found = select(self._shown, *columns).where(self.query.condition.is_ready)
        if self.query.attempts.has_no_blocking_attempt is not None:
            found = found.where(self.query.attempts.has_no_blocking_attempt)
        if not every:
            found = found.where(self.column.is_(None))
        if after:
            kinds = [column.type for column in self.query.mapper.primary_key]
            last = [bindparam(None, value, type_=kind) for value, kind in zip(after, kinds, strict=True)]
            found = found.where(columns[0] > last[0] if len(columns) == 1 else tuple_(*columns) > tuple_(*last))
        return found.order_by(*columns).limit(most)

    def _first_keys_statement(self, each: int) -> Select[Any]:
        which = (self.query.version, each)
        made = self._first.get(which)
        if made is None:
            given: Any = aliased(self.query.entity, name="groundstate_given")
            mine = [getattr(given, column.key) for column in self.query.keys.key_attributes]
            found = self._select_with_first_keys(mine, getattr(given, self.column.key), each, given, *mine)
            made = self._first[which] = found.where(self.query.keys.is_given_key(mine))
        return made

    def _select_with_first_keys(self, chosen: Sequence[Any], value: Any, each: int, source: Any, *order: Any) -> Select[Any]:
        """Return a statement that selects two things for each row of `source`: the `chosen` columns, and the keys of the first `each`
        records in the group with this value.

        On PostgreSQL the result has one row per key. On SQLite, which has no LATERAL, it has one row per source row, with all the keys.
        """
        own = self.query.keys.key_attributes
        if not self.query.database.locks_rows:
            lines = (
                self.select_rows_of_value(value, one).offset(n).limit(1).correlate(source).scalar_subquery()
                for n in range(each)
                for one in own
            )
            return select(*chosen, *lines).order_by(*order)
        places = [column.label(f"groundstate_place_{n}") for n, column in enumerate(self.order_within_group)]
        columns = [column.label(f"groundstate_key_{n}") for n, column in enumerate(own)]
        line = self.select_rows_of_value(value, *places, *columns).limit(each).correlate(source).lateral("groundstate_line")
        in_line, found = list(line.c)[: len(places)], list(line.c)[len(places) :]
        return select(*chosen, *found).select_from(source).outerjoin(line, true()).order_by(*order, *in_line)

    def _first_keys_in(self, rows: Iterable[Any], head: int) -> dict[tuple[Any, ...], list[PrimaryKey]]:
        """Return the result of `_select_with_first_keys` as a dict: from a row's first `head` columns to the keys in its other columns."""
        found: dict[tuple[Any, ...], list[PrimaryKey]] = {}
        size = len(self.query.keys.key_attributes)
        for row in rows:
            keys_found = (tuple(row[first : first + size]) for first in range(head, len(row), size))
            found.setdefault(tuple(row[:head]), []).extend(key for key in keys_found if key[0] is not None)
        return found

    @property
    def order_within_group(self) -> tuple[Any, ...]:
        """The columns that sort the rows with the same value: the order column of `in_order` or the due time, and then the primary key."""
        return (*self._first_by, *self.query.keys.key_attributes) if self._first_by else self.query.cursors.cursor_columns

    @property
    def _is_read_for_group(self) -> ColumnElement[bool]:
        """Return the SQL condition that selects which rows of a group (the rows with the same value of `per` or `in_order`) are read.

        If the rows must be carried out in order, ready rows with attempts are read too, since later rows must wait for them. Otherwise rows
        with blocking attempts are left out, so that the rows behind them are reached.
        """
        also = self._is_in_line if self.must_keep_order else self.query.attempts.has_no_blocking_attempt
        return self.query.condition.is_ready if also is None else and_(self.query.condition.is_ready, also)

    @property
    def _is_in_line(self) -> ColumnElement[bool] | None:
        """Return the SQL condition that the row is in line: later rows with the same value of the group's column must wait for it. None
        if SQL cannot tell.

        A row with a baseline (it matched before the reaction was introduced) is not in line. With `past_held`, a row that has a held
        attempt without a call in doubt is not in line either. Only attempts for the present occurrence count, as far as SQL can tell.
        """
        written = self.query.keys.key_text_in_sql
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
        if spec.occurrence and (same := self.query.attempts.is_attempt_of_this_occurrence) is not None:
            of_all = or_(is_blocking if spec.repeats else is_blocking_own_reaction, self.query.attempts.is_outdated_baseline)
            aside = aside.where(or_(of_all, same))
        return not_(aside.exists())


def _value_as_loaded(value: Any) -> Any:
    """Return a group's value as the column's type loads it, even if it is stored in another form. Text that is not UTF-8 stays a
    NoValue.
    """
    return value.loaded if isinstance(value, NoValue) and value.loaded is not None else value


@lru_cache(maxsize=256)
def group_statements(query: ConditionQuery) -> GroupStatements:
    """Return the GroupStatements of this condition query; they are built once. Raises DeclarationError if the database cannot express
    them.
    """
    return GroupStatements(query)


@dataclass
class Page:
    """Some keys that may be taken, and the cursor for the next page; the cursor is None if the pass has ended."""

    keys: list[PrimaryKey] = field(default_factory=list)
    cursor: Cursor | None = None


MayGo = Callable[[str], bool]
LeftOf = Callable[[Sequence[str]], Mapping[str, int]]


def _allow_any_value(_value: str) -> bool:
    """Return True for every value: the default for `may_go`."""
    return True


def _no_known_limits(_values: Sequence[str]) -> Mapping[str, int]:
    """Return no limit for any value: the default for `left_of`."""
    return {}


@dataclass
class GroupPasses:
    """The passes over the backlog of one reaction, one after another. Each pass visits the values, and then some of the remaining rows."""

    groups: GroupStatements
    _going: int = 0  # in the last pass: the number of values with rows that could be carried out
    _met: int = 0  # in this pass, so far: the number of values with rows that could be carried out
    _read_for_one: int = 1  # how many values must be read to find one whose rows may be carried out
    _rest: PrimaryKey = ()  # the key after which the next pass goes on in the part that is read in key order
    _every_row: bool = field(init=False)  # whether all rows are read after the values, and not only the rows without a value
    _took: bool = False  # whether this pass has taken any record
    _number: int = 0  # the number of this pass
    _in_vain: int = 0  # how many passes in a row, before this one, took nothing
    _page: dict[PrimaryKey, Any] = field(default_factory=dict)  # the value of each key of the last page
    # Value -> key that was found locked -> number of the pass that found this.
    _busy: dict[Any, dict[PrimaryKey, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._every_row = self.groups.may_miss_rows

    def next_page(
        self,
        connection: Connection,
        cursor: Cursor | None,
        room: int,
        may_go: MayGo = _allow_any_value,
        left_of: LeftOf = _no_known_limits,
    ) -> Page:
        """Return the next keys of this pass over the backlog, at most `room` keys.

        may_go: A function that tells whether any record with this value may be taken now.
        left_of: A function that returns how many records with each of these values may still be taken; values without a limit are left out.
        """
        if cursor is None or cursor[0] == "by":
            return self._next_page_by_group(connection, cursor or ("by",), room, may_go, left_of)
        return self._next_page_in_key_order(connection, room, may_go)

    def _next_page_by_group(self, connection: Connection, cursor: Cursor, room: int, may_go: MayGo, left_of: LeftOf) -> Page:
        few = self._met < self._going  # so far this pass has met fewer values than the last pass
        each = min(max(room // self._going, 1), self.groups.most_rows_of_group) if few else 1
        values, dense = max(room // each, 1), self._read_for_one == 1
        most = min(max(values * self._read_for_one, 2), VALUES_MOST)  # at least 2, to see whether a value follows the first
        wanted = each + max(map(len, self._busy.values()), default=0)
        deep = next((deep for deep in EACH if deep >= wanted), EACH[-1])
        found = self.groups.read_groups(connection, cursor[1:], most, deep if dense else 1)
        going = [(value, some) for value, some in found if some and may_go(keys.canonical_text(value))]
        if found:
            self._read_for_one = max(len(found) // len(going), 1) if going else min(self._read_for_one * 4, VALUES_MOST)
        more, going = going[values:], going[:values]
        self._met += len(going)
        if going and deep > 1 and not dense:  # read more rows of the few values whose rows may be carried out
            firsts = self.groups.first_keys_in_group_of(connection, [some[0] for _, some in going], deep)
            going = [(value, firsts.get(some[0], [])) for value, some in going]
        left = left_of([keys.canonical_text(value) for value, _ in going]) if going else {}
        free = [self._keys_not_locked_lately(value, some)[: min(each, left.get(keys.canonical_text(value), each))] for value, some in going]
        # Take one key of each value, then a second key of each value, and so on.
        self._page = dict(some[number] for number in range(each) for some in free if number < len(some))
        if more:
            return Page(list(self._page), ("by", going[-1][0]))
        return Page(list(self._page), ("by", found[-1][0]) if len(found) == most else ("rest",))

    def _keys_not_locked_lately(self, value: Any, some: Sequence[PrimaryKey]) -> list[tuple[PrimaryKey, Any]]:
        """Return pairs (key, value) for these keys. Leave out each key that was found locked in the last passes."""
        return [(key, value) for key in some if key not in self._busy.get(value, ())]

    def _next_page_in_key_order(self, connection: Connection, room: int, may_go: MayGo) -> Page:
        most = VALUES_MOST if self._every_row else max(room, 1)
        found = self.groups.read_in_key_order(connection, self._rest, most, every=self._every_row)
        going = [(key, value) for value, key in found if value is None or may_go(keys.canonical_text(value))]
        if len(going) > room:
            self._rest = going[room - 1][0]
        else:
            self._rest = found[-1][1] if len(found) == most else ()
        self._page = dict(going[:room])
        return Page(list(self._page))

    def note_page_result(self, *, took: bool, busy: Sequence[PrimaryKey] = ()) -> None:
        """Note whether records of the last page were taken.

        busy: Keys that another transaction has locked. The rows behind them need not wait, unless they must be carried out in order.
        """
        self._took |= took
        for key in busy if self.groups.order is None else ():
            self._busy.setdefault(self._page.get(key), {})[key] = self._number

    def end_pass(self) -> bool:
        """End the pass. Return whether another pass must follow at once: it may find more records, or this pass left rows out.

        Rows that were found locked are left out of the following passes (at most EACH[-1] passes), and are tried again later.
        """
        self._in_vain = 0 if self._took else self._in_vain + 1
        met_busy = any(number == self._number for some in self._busy.values() for number in some.values())
        walks = bool(self._rest)
        if not walks:
            too_deep = any(len(some) >= EACH[-1] for some in self._busy.values())
            self._every_row = self.groups.may_miss_rows or (met_busy and (too_deep or self._in_vain == IN_VAIN_MOST))
        goes_on = self._took or walks or (met_busy and self._in_vain <= IN_VAIN_MOST)
        self._going, self._met, self._took, self._number = self._met, 0, False, self._number + 1
        kept_since = self._number - EACH[-1] if goes_on else self._number
        busy = {value: {key: number for key, number in some.items() if number >= kept_since} for value, some in self._busy.items()}
        self._busy = {value: some for value, some in busy.items() if some}
        self._in_vain = self._in_vain if goes_on else 0
        return goes_on

    def probe_one_row(self, connection: Connection) -> Sequence[Any]:
        """Read one ready row, if there is one, to find out whether the query works."""
        return self.groups.read_groups(connection, (), 1, 1) or self.groups.read_in_key_order(connection, (), 1, every=False)


def group_passes_for(query: ConditionQuery) -> GroupPasses | None:
    """Return the passes for a reaction with `in_order` or `per`; None for a reaction whose backlog is read in key order."""
    spec = query.spec
    return None if spec.in_order is None and spec.per is None else GroupPasses(group_statements(query))
