"""Every column type that SQLAlchemy has for SQLite and PostgreSQL, with values that it may be given: made ones, and those at its edges."""

from __future__ import annotations

import enum
import ipaddress
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects import sqlite

from groundstate import UtcDateTime


class Word(enum.StrEnum):
    A = "a"
    B = "b b"


class Size(enum.Enum):
    SMALL = 1
    LARGE = 2


class Yes(sa.TypeDecorator[Any]):
    """Maps several values to one that is stored."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else "Y" if value in (True, "yes", "Y") else "N"


class Zoned(sa.TypeDecorator[datetime]):
    """Keeps the zone, as text."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else value.isoformat()

    def process_result_value(self, value: str | None, dialect: Any) -> datetime | None:  # noqa: ARG002  # what a type is given
        return None if value is None else datetime.fromisoformat(value)


class Guid(sa.TypeDecorator[uuid.UUID]):
    """SQLAlchemy's own recipe, shortened."""

    impl = sa.CHAR(32)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:  # noqa: ARG002  # what a type is given
        return None if value is None else (value if isinstance(value, uuid.UUID) else uuid.UUID(value)).hex

    def process_result_value(self, value: str | None, dialect: Any) -> uuid.UUID | None:  # noqa: ARG002  # what a type is given
        return None if value is None else uuid.UUID(value)


class Anything(sa.TypeDecorator[Any]):
    """JSON, told to be something of the user's."""

    impl = sa.JSON
    cache_ok = True


@dataclass(frozen=True)
class Kind:
    """A type of column. outcome: how a call's outcome of it is annotated; None where none may be one.

    has_text: whether it may be an occurrence, or a primary key; where it may not, that is refused at the declaration.
    """

    name: str
    make: Callable[[], Any]
    made: st.SearchStrategy[Any]
    edges: Sequence[Any]
    outcome: Any = None
    has_text: bool = True
    stores: tuple[str, ...] = ("sqlite", "postgres")


BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [UTC, BERLIN, timezone(timedelta(hours=1)), timezone(timedelta(hours=-9, minutes=-30))]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FIRST, LAST = datetime.min, datetime.max  # noqa: DTZ901  # there are such columns
NAIVE_NOON = datetime(2026, 3, 1, 12)  # noqa: DTZ001  # there are such columns
TWICE = [datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)]
AWARE = [*[NOON.astimezone(zone) for zone in ZONES], *TWICE, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
NAIVE = [NAIVE_NOON, NAIVE_NOON.replace(fold=1), NAIVE_NOON.replace(microsecond=1), FIRST, LAST]
ACROSS = [datetime.min.replace(tzinfo=ZONES[2]), datetime.max.replace(tzinfo=ZONES[3])]  # their days in UTC are in no calendar

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
TEXTS = ["", "a", Word.A, "A", " ", "a ", "ä", "a\u0308", "\U0001f600", "'\"\\%:x", ":null:", "NULL", "\n"]
aware = st.datetimes(datetime(1000, 1, 1), datetime(9000, 1, 1), timezones=st.sampled_from(ZONES))  # noqa: DTZ001  # as above
naive = st.datetimes()
scaled = st.decimals(-(10**6), 10**6, places=2)
jsons = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 0.0, 1.0, -0.0, "1"]) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
JSONS: list[Any] = [
    None,
    True,
    1,
    1.0,
    False,
    0,
    0.0,
    -0.0,
    "1",
    "",
    [True],
    [1],
    [1.0],
    {"a": True},
    {"a": 1},
    {"b": 0, "a": None},
    {"a": None, "b": 0},
]
JSONS += [sa.JSON.NULL, float("nan"), {"a": [float("nan"), float("-inf")]}]
FLOATS = [0.0, -0.0, 1, 1.0, True, 0.1, 1e-300, 1.7976931348623157e308, 5e-324, float("inf"), float("-inf"), float("nan"), Decimal("1.0")]
DECIMALS = [Decimal(one) for one in ("0", "-0", "1", "1.0", "1.00", "1E+2", "100", "0.1", "-2.50", "123456.78", "NaN")] + [1, True, 1.0]
INTEGERS = [True, 1, 0, False, -1]
INTERVALS = [timedelta(), timedelta(hours=24), timedelta(days=1), timedelta(microseconds=-1), timedelta(days=9999, microseconds=1)]


def _integer(name: str, make: Callable[[], Any], bits: int, **options: Any) -> Kind:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return Kind(name, make, st.integers(low, high), [*INTEGERS, low, high], outcome=int, **options)


def _range(name: str, make: Callable[[], Any], values: Sequence[Any]) -> Kind:
    low, high = values
    given = [pg.Range(low, high), pg.Range(low, high, bounds="[]"), pg.Range(low, None), pg.Range(None, None), pg.Range(empty=True)]
    return Kind(name, make, st.sampled_from(given), given, has_text=False, stores=("postgres",))


def _multirange(name: str, make: Callable[[], Any], values: Sequence[Any]) -> Kind:
    low, high = values
    given = [[], [pg.Range(low, high)], [pg.Range(low, low, bounds="[]"), pg.Range(high, None)]]
    return Kind(name, make, st.sampled_from(given), given, has_text=False, stores=("postgres",))


def _of_postgres(name: str, make: Callable[[], Any], edges: Sequence[Any], made: Any = None, **options: Any) -> Kind:
    return Kind(name, make, st.sampled_from(edges) if made is None else made, edges, stores=("postgres",), **options)


def _of_sqlite(name: str, make: Callable[[], Any], edges: Sequence[Any], made: Any = None, **options: Any) -> Kind:
    return Kind(name, make, st.sampled_from(edges) if made is None else made, edges, stores=("sqlite",), **options)


def _values(of: Any) -> list[str]:
    return [one.value for one in of]


_ENUMS = [Word.A, Word.B, "A", Size.SMALL]
NO_TEXT: dict[str, Any] = {"has_text": False}

GENERIC = [
    _integer("integer", sa.Integer, 32),
    _integer("small", sa.SmallInteger, 16),
    _integer("big", sa.BigInteger, 64),
    Kind("boolean", sa.Boolean, st.booleans(), [True, False, 1, 0, 2, "x"], outcome=bool),
    Kind("date", sa.Date, st.dates(), [date.min, date.max, date(2026, 3, 1), NOON], outcome=date),
    Kind("time", sa.Time, st.times(), [time(), time(1, fold=1), time(1), time.max, time(1, tzinfo=UTC)], outcome=time),
    Kind("naive", sa.DateTime, naive, [*NAIVE, NOON], outcome=datetime),
    Kind("aware", lambda: sa.DateTime(timezone=True), aware, [*AWARE, *ACROSS, NAIVE_NOON], outcome=datetime),
    Kind("instant", UtcDateTime, aware, [*AWARE, *ACROSS, NAIVE_NOON], outcome=datetime),
    Kind("instant_utc", lambda: UtcDateTime(naive="utc"), aware | naive, [*AWARE, *NAIVE], outcome=datetime),
    Kind("interval", sa.Interval, st.timedeltas(timedelta(days=-9000), timedelta(days=9000)), INTERVALS, outcome=timedelta),
    Kind("double", sa.Double, st.floats(), FLOATS, outcome=float),
    Kind("float", sa.Float, st.floats(), FLOATS, outcome=float),
    Kind("float_decimal", lambda: sa.Float(asdecimal=True), scaled, DECIMALS, outcome=Decimal),
    Kind("numeric", sa.Numeric, scaled, DECIMALS, outcome=Decimal),
    Kind("numeric_scale", lambda: sa.Numeric(12, 2), scaled, [*DECIMALS, Decimal("0.005")], outcome=Decimal),
    Kind("numeric_float", lambda: sa.Numeric(12, 2, asdecimal=False), scaled.map(float), [*FLOATS, Decimal("1.00")], outcome=float),
    Kind("string", sa.String, texts, TEXTS, outcome=str),
    Kind("string_short", lambda: sa.String(3), st.text("aä ", max_size=3), ["", "a", "a ", "aaaa"], outcome=str),
    Kind("char", lambda: sa.CHAR(3), st.text("aä", max_size=3), ["", "a", "aaa"], outcome=str),
    Kind("text", sa.Text, texts, TEXTS, outcome=str),
    Kind("unicode", sa.Unicode, texts, TEXTS, outcome=str),
    Kind("unicode_text", sa.UnicodeText, texts, TEXTS, outcome=str),
    Kind("binary", sa.LargeBinary, st.binary(max_size=4), [b"", b"\x00", b"\xff", b"a", "a"], outcome=bytes),
    Kind("uuid", sa.Uuid, st.uuids(), [uuid.UUID(int=0), uuid.UUID(int=1)], outcome=uuid.UUID),
    Kind(
        "uuid_text",
        lambda: sa.Uuid(as_uuid=False),
        st.uuids().map(str),
        [str(uuid.UUID(int=10)), str(uuid.UUID(int=10)).upper()],
        outcome=str,
    ),
    Kind("uuid_plain", lambda: sa.Uuid(native_uuid=False), st.uuids(), [uuid.UUID(int=10)], outcome=uuid.UUID),
    Kind("enum", lambda: sa.Enum(Word, name="word_by_name"), st.sampled_from(Word), _ENUMS, outcome=Word),
    Kind("enum_value", lambda: sa.Enum(Word, name="word_by_value", values_callable=_values), st.sampled_from(Word), _ENUMS, outcome=Word),
    Kind("enum_plain", lambda: sa.Enum(Size, native_enum=False), st.sampled_from(Size), [*Size, "SMALL", 1], outcome=Size),
    Kind(
        "enum_plain_value", lambda: sa.Enum(Word, native_enum=False, values_callable=_values), st.sampled_from(Word), _ENUMS, outcome=Word
    ),
    Kind("enum_text", lambda: sa.Enum("a", "b b", name="words"), st.sampled_from(["a", "b b"]), ["a", "b b", Word.A, "c"], outcome=str),
    Kind("json", sa.JSON, jsons, JSONS, outcome=list[int | bool | float], **NO_TEXT),
    Kind("json_null", lambda: sa.JSON(none_as_null=True), jsons, JSONS, outcome=dict[str, Any], **NO_TEXT),
    Kind("pickle", sa.PickleType, jsons, [True, 1, 1.0, (1,), (True,), Decimal("1.0"), Decimal("1.00"), Word.A, "a", -0.0, 0.0], **NO_TEXT),
    Kind("yes", Yes, st.sampled_from([True, 1, "yes", "no", 0]), [True, 1, 1.0, "yes", "Y", "no"], outcome=bool),
    Kind("zoned", Zoned, aware, AWARE, outcome=datetime),
    Kind("guid", Guid, st.uuids(), [uuid.UUID(int=10), str(uuid.UUID(int=10))], outcome=uuid.UUID),
    Kind("anything", Anything, jsons, JSONS, outcome=list[Any], **NO_TEXT),
]

SQLITE = [
    _of_sqlite("sqlite_json", sqlite.JSON, JSONS, jsons, **NO_TEXT),
    _of_sqlite(
        "sqlite_date",
        lambda: sqlite.DATE(storage_format="%(day)02d.%(month)02d.%(year)04d", regexp=r"(?P<day>\d+)\.(?P<month>\d+)\.(?P<year>\d+)"),  # type: ignore[no-untyped-call]
        [date.min, date.max],
        st.dates(),
    ),
    _of_sqlite("sqlite_time", lambda: sqlite.TIME(truncate_microseconds=True), [time(), time.max, time(1, 2, 3)], st.times()),  # type: ignore[no-untyped-call]
    _of_sqlite("sqlite_datetime", lambda: sqlite.DATETIME(truncate_microseconds=True), NAIVE, naive),  # type: ignore[no-untyped-call]
]

_MACS = ["08:00:2b:01:02:03", "08-00-2B-01-02-03"]
_NETS = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::/0"), "10.0.0.0/8", "10/8"]
_HOSTS = [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1"), ipaddress.ip_interface("10.0.0.1/8"), "10.0.0.1/32"]

POSTGRES = [
    _of_postgres("array", lambda: pg.ARRAY(sa.Integer), [[], [1], [True], [None], [1, 2]], st.lists(st.integers(-9, 9), max_size=3),
        outcome=list[int], **NO_TEXT),
    _of_postgres("array_text", lambda: sa.ARRAY(sa.Text), [[], [""], ["NULL"], [None], ['{"a'], ["a", "A"]], st.lists(texts, max_size=2),
        outcome=list[str], **NO_TEXT),
    _of_postgres("array_numeric", lambda: pg.ARRAY(sa.Numeric), [[Decimal("1.0")], [Decimal("1.00")], [Decimal(1)]],
        outcome=list[Decimal], **NO_TEXT),
    _of_postgres("array_deep", lambda: pg.ARRAY(sa.Integer, dimensions=2), [[[1, 2], [3, 4]], [[1], [2]]],
        outcome=list[list[int]], **NO_TEXT),
    _of_postgres("array_enum", lambda: pg.ARRAY(sa.Enum(Word, name="word_in_array")), [[Word.A], [Word.A, Word.B], []],
        outcome=list[Word], **NO_TEXT),
    _of_postgres("jsonb", pg.JSONB, JSONS, jsons, outcome=dict[str, Any], **NO_TEXT),
    _of_postgres("pg_json", pg.JSON, JSONS, jsons, **NO_TEXT),
    _of_postgres("bytea", pg.BYTEA, [b"", b"\x00\xff", b"a"], st.binary(max_size=4), outcome=bytes),
    _of_postgres("cidr", pg.CIDR, _NETS),
    _of_postgres("inet", pg.INET, _HOSTS),
    _of_postgres("macaddr", pg.MACADDR, _MACS, outcome=str),
    _of_postgres("macaddr8", pg.MACADDR8, ["08:00:2b:01:02:03:04:05"], outcome=str),
    _of_postgres("money", pg.MONEY, ["$1.00", "1", "-$1,000.50", Decimal("1.5")], outcome=str),
    _of_postgres("hstore", pg.HSTORE, [{}, {"a": "1"}, {"a": None}, {"": ""}], outcome=dict[str, str | None], **NO_TEXT),
    _of_postgres("bit", lambda: pg.BIT(4), [pg.BitString("0101"), "0101", pg.BitString("1111")]),
    _of_postgres("bit_varying", lambda: pg.BIT(varying=True), [pg.BitString("01"), "01", "1", ""]),
    _range("int4range", pg.INT4RANGE, [1, 5]),
    _range("int8range", pg.INT8RANGE, [1, 2**40]),
    _range("numrange", pg.NUMRANGE, [Decimal("1.0"), Decimal("2.50")]),
    _range("daterange", pg.DATERANGE, [date(2026, 1, 1), date(2026, 2, 1)]),
    _range("tsrange", pg.TSRANGE, [NAIVE_NOON, NAIVE_NOON + timedelta(days=1)]),
    _range("tstzrange", pg.TSTZRANGE, [NOON, NOON.astimezone(BERLIN) + timedelta(days=1)]),
    _multirange("int4multirange", pg.INT4MULTIRANGE, [1, 5]),
    _multirange("int8multirange", pg.INT8MULTIRANGE, [1, 2**40]),
    _multirange("nummultirange", pg.NUMMULTIRANGE, [Decimal("1.0"), Decimal("2.50")]),
    _multirange("datemultirange", pg.DATEMULTIRANGE, [date(2026, 1, 1), date(2026, 2, 1)]),
    _multirange("tsmultirange", pg.TSMULTIRANGE, [NAIVE_NOON, NAIVE_NOON + timedelta(days=1)]),
    _multirange("tstzmultirange", pg.TSTZMULTIRANGE, [NOON, NOON + timedelta(days=1)]),
    _of_postgres("tsvector", pg.TSVECTOR, ["a fat cat", "'a' 'b':1", ""], outcome=str),
    _of_postgres("tsquery", pg.TSQUERY, ["'a' & 'b'", "!'a'"], outcome=str),
    _of_postgres("pg_interval", pg.INTERVAL, INTERVALS, st.timedeltas(timedelta(days=-9000), timedelta(days=9000)), outcome=timedelta),
    _of_postgres("pg_interval_0", lambda: pg.INTERVAL(precision=0), INTERVALS, outcome=timedelta),
    _of_postgres("double_precision", pg.DOUBLE_PRECISION, FLOATS, st.floats(), outcome=float),
    _of_postgres("real", pg.REAL, [0.0, -0.0, 0.1, 1, 1e30, float("nan"), float("inf"), 1e300], st.floats(width=32), outcome=float),
    _of_postgres("citext", pg.CITEXT, TEXTS, texts, outcome=str),
    _of_postgres("domain", lambda: pg.DOMAIN("positive", sa.Integer, check="VALUE > 0"), [1, True, 7, -1]),
    _of_postgres("domain_text", lambda: pg.DOMAIN("short_text", sa.String(3)), ["", "a", "aaaa"]),
    _of_postgres("pg_enum", lambda: pg.ENUM(Size, name="pg_size"), [*Size, "SMALL"], outcome=Size),
    _of_postgres("timestamp", lambda: pg.TIMESTAMP(precision=0), NAIVE, naive, outcome=datetime),
    _of_postgres("timestamp_zone", lambda: pg.TIMESTAMP(timezone=True, precision=3), AWARE, aware, outcome=datetime),
    _of_postgres("time_zone", lambda: pg.TIME(timezone=True), [time(1), time(1, tzinfo=UTC), time(2, tzinfo=ZONES[2]), time.max],
        outcome=time),
    _of_postgres("oid", pg.OID, [0, 1, 2**32 - 1]),
    _of_postgres("regclass", pg.REGCLASS, ["pg_class", "pg_type"]),
    _of_postgres("regconfig", pg.REGCONFIG, ["simple", "english"]),
    _of_postgres("jsonb_null", lambda: pg.JSONB(none_as_null=True), JSONS, jsons, **NO_TEXT),
]  # fmt: skip


def kinds_of(store: str) -> dict[str, Kind]:
    """The types that this store has, by name."""
    return {kind.name: kind for kind in [*GENERIC, *SQLITE, *POSTGRES] if store in kind.stores}
