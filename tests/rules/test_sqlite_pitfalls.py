"""What SQLite computes and not as it is meant: each refusal is held against what SQLite says, and each thing that is let through too."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    JSON,
    Connection,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    String,
    and_,
    create_engine,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy import case as case_of
from sqlalchemy import cast as cast_of
from sqlalchemy import extract as part_of
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.sqlite import DATETIME
from sqlalchemy.exc import SADeprecationWarning
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from groundstate import UtcDateTime
from groundstate.rules.sqlite_pitfalls import reason_to_refuse_expression

HOUR = timedelta(hours=1)
POSTGRES: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # of SQLAlchemy
NOW = datetime.now(UTC)
THEN = datetime(2000, 1, 1)  # noqa: DTZ001  # as a plain DateTime has it
SAME_IN_UTC = NOW - 48 * HOUR
SAME_FAR_EAST = SAME_IN_UTC.astimezone(timezone(14 * HOUR))
EARLY_FAR_EAST = (NOW - 49 * HOUR).astimezone(timezone(14 * HOUR))
MIDNIGHT = (NOW - timedelta(hours=48)).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)


class Base(DeclarativeBase): ...


class Size(enum.Enum):
    small = 1
    medium = 2
    large = 3


class Level(enum.IntEnum):
    low = 1
    high = 10


TOKEN = UUID("5f0c7a52-6d2f-4c0b-9a37-8f2a1b3c4d5e")


class Seconds(TypeDecorator[datetime]):
    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  # SQLAlchemy's
        return int(value.timestamp()) if isinstance(value, datetime) else value


class Unix(TypeDecorator[datetime]):
    impl = DateTime
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.unixepoch(bindparam)


DIGITS = DATETIME(  # type: ignore[no-untyped-call]  # of SQLAlchemy
    storage_format="%(year)04d%(month)02d%(day)02d%(hour)02d%(minute)02d%(second)02d",
    regexp=r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)",
)


def starts_with(side: Any, letters: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SADeprecationWarning)  # SQLAlchemy 2.1 says that it will refuse it
        return side.startswith(letters)


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    plain: Mapped[datetime]
    zoned: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    midnight: Mapped[datetime]
    day: Mapped[date]
    clock: Mapped[time]
    span: Mapped[timedelta]
    size: Mapped[Size]
    epoch: Mapped[datetime] = mapped_column(Seconds)
    unix: Mapped[datetime] = mapped_column(Unix)
    digits: Mapped[datetime] = mapped_column(DIGITS)
    number: Mapped[int]
    ratio: Mapped[float]
    flag: Mapped[bool]
    total: Mapped[Decimal]
    text: Mapped[str]
    level: Mapped[Level]
    tenth: Mapped[Decimal]
    january: Mapped[date]
    token: Mapped[UUID]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    parts: Mapped[list[Part]] = relationship()


class Part(Base):
    __tablename__ = "parts"
    id: Mapped[int] = mapped_column(primary_key=True)
    row_id: Mapped[int] = mapped_column(ForeignKey("rows.id"))
    at: Mapped[datetime]


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Connection]:
    """One row, of 48 hours ago, whose values are told by `WRONG` and `RIGHT`."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    then = (NOW - timedelta(hours=48)).replace(tzinfo=None)
    with engine.connect() as connection:
        data = {
            "n": 10,
            "low": -1,
            "yes": True,
            "text": "x",
            "word": "7",
            "list": [1, 2],
            "object": {"a": 1},
            "nothing": None,
            "none": [],
            "nine": 9,
        }
        values = {
            "at": then.replace(tzinfo=UTC),
            "plain": then,
            "zoned": then.replace(tzinfo=UTC),
            "day": then.date(),
            "clock": time(12),
            "span": 3 * HOUR,
            "size": Size.large,
            "epoch": then,
            "unix": then,
            "digits": then,
        }
        values |= {
            "midnight": MIDNIGHT,
            "number": 7,
            "ratio": 0.5,
            "flag": True,
            "total": Decimal("10.5"),
            "text": "7",
            "level": Level.high,
            "tenth": Decimal("0.1"),
            "january": date(2026, 1, 5),
            "token": TOKEN,
            "data": data,
        }
        connection.execute(insert(Row).values(id=1, **values))
        connection.execute(insert(Part).values(id=1, row_id=1, at=then))
        yield connection
    engine.dispose()


def holds(connection: Connection, clause: Any) -> bool:
    return connection.execute(select(Row.id).where(clause)).first() is not None


# Each is true of the row and false on SQLite, or the other way round.
WRONG: dict[str, tuple[Any, bool]] = {
    "the clock less an interval": (Row.plain < func.now() - HOUR, True),
    "the same, of an UtcDateTime": (Row.at < func.now() - HOUR, True),
    "the same, as older": (Row.at > func.now() - HOUR, False),
    "a time and an interval": (Row.plain + 72 * HOUR > func.now(), True),
    "the same, longer": (Row.plain + 36 * HOUR + 36 * HOUR > func.now(), True),
    "two times": (func.now() - Row.plain > HOUR, True),
    "their difference in seconds": (part_of("epoch", func.now() - Row.plain) > 3600, True),
    "a column of intervals": (Row.plain + Row.span > Row.plain, True),
    "an interval twice": (Row.span.op("*")(2) > 5 * HOUR, True),
    "an operator of one's own": (func.now().op("-")(Row.plain) > literal(HOUR), True),
    "within or": (or_(Row.number == 0, Row.plain < func.now() - HOUR), True),
    "between": (Row.plain.between(func.now() - 72 * HOUR, func.now() - HOUR), True),
    "within any": (Row.parts.any(Part.at < func.now() - HOUR), True),
    "within a subquery": (
        select(func.count(Part.id)).where(Part.row_id == Row.id, Part.at < func.now() - HOUR).scalar_subquery() > 0,
        True,
    ),
    "days": (Row.day - date(2020, 1, 1) > 366, True),
    "a day and a number": (Row.day + 1 > Row.day, True),
    "a time of the day": (Row.clock + HOUR > time(12, 30), True),
    "a sum of intervals": (select(func.sum(Row.span)).scalar_subquery() > HOUR, True),
    "a day by cast": (cast_of(Row.plain, Date) == Row.day, True),
    "a time by cast": (cast_of(Row.plain, DateTime) > THEN, True),
    "a timedelta as a modifier": (Row.plain < func.datetime("now", HOUR), True),
    "a text of seconds with a number": (func.strftime("%s", Row.plain) < 99_999_999_999, True),
    "a number with a word": (Row.number < "low", False),
    "the same among others": (Row.number.not_in(["low", "high"]), False),
    "a day with a time": (Row.day == Row.midnight, True),
    "an enum's order": (Row.size > Size.small, True),
    "the same by name": (Row.size >= "medium", True),
    "between two of an enum": (Row.size.between(Size.small, Size.large), True),
    "json and a number": (Row.data["n"] == 10, True),
    "json less than a number": (Row.data["low"] < 0, True),
    "json among numbers": (Row.data["n"].in_([10, 11]), True),
    "json and text": (Row.data["text"] == "x", True),
    "json and a truth": (Row.data["yes"].is_(True), True),
    "json and a list": (Row.data["list"] == [1, 2], True),
    "json and an object": (Row.data["object"] == {"a": 1}, True),
    "json that is not there": (Row.data["nowhere"].is_(None), True),
    "a path in json": (Row.data["object", "a"] == 1, True),
    "a type that keeps seconds, and the clock": (Row.epoch.between(func.datetime("now", "-72 hours"), func.now()), True),
    "a number and the clock": (Row.number < func.now(), False),
    "a day by SQLite's own function, less one": (Row.day < func.date("now") - 1, True),
    "days between two of them": (func.date("now") - func.date(Row.plain) >= 2, True),
    "seconds off SQLite's own time": (Row.plain < func.datetime("now") - 3600, True),
    "a time of another zone": (Row.at < literal((NOW - 49 * HOUR).astimezone(timezone(14 * HOUR))), False),
    "the same within case": (Row.at < case_of((Row.number == 7, (NOW - 49 * HOUR).astimezone(timezone(14 * HOUR))), else_=Row.at), False),
    "a plain time and one of another zone": (Row.plain < EARLY_FAR_EAST, False),
    "the same, of a column with a zone": (Row.zoned < EARLY_FAR_EAST, False),
    "the same, among other times": (Row.plain.in_([THEN, SAME_FAR_EAST]), True),
    "the same, not among others": (Row.zoned.not_in([SAME_FAR_EAST]), False),
    "the same, between": (Row.zoned.between(THEN, EARLY_FAR_EAST), False),
    "the same, within case": (Row.zoned < case_of((Row.number == 7, EARLY_FAR_EAST), else_=Row.zoned), False),
    "the same, within SQLite's own function": (func.unixepoch(Row.zoned) < func.unixepoch(literal(EARLY_FAR_EAST)), False),
    "the same, within coalesce": (Row.plain < func.coalesce(null(), literal(EARLY_FAR_EAST)), False),
    "the same, among pairs": (tuple_(Row.number, Row.plain).in_([(7, SAME_FAR_EAST)]), True),
    "a time of the day of another zone": (Row.clock == time(14, tzinfo=timezone(2 * HOUR)), True),
    "seconds of text with seconds": (func.strftime("%s", Row.plain) < func.unixepoch("now"), True),
    "seconds of text with an hour less": (func.strftime("%s", Row.plain) < func.strftime("%s", "now") - 3600, True),
    "a float with a word": (Row.ratio < "low", False),
    "a number with a word of case": (Row.number < case_of((Row.text == "7", "low"), else_=1), False),
    "a number with a word of coalesce": (Row.number < func.coalesce(null(), "low"), False),
    "a number with a word beside a column": (Row.number.not_in([Row.id, "low"]), False),
    "a number between a column and a word": (Row.number.between(Row.id, "low"), False),
    "a truth and its word": (Row.flag == "true", True),
    "not a word of truth": (Row.flag != "true", False),
    "a truth among words": (Row.flag.in_(["true", "yes"]), True),
    "json and another, by their order": (Row.data["n"] > Row.data["nine"], True),
    "json or a number": (func.coalesce(Row.data["n"], 0) == 10, True),
    "json and a number that SQLite computes": (Row.data["n"] == func.length("0123456789"), True),
    "json and a number by arithmetic": (Row.data["n"] == Row.number + 3, True),
    "json or other json and a number": (case_of((Row.text == "7", Row.data["n"]), else_=Row.data["nine"]) == 10, True),
    "an UtcDateTime and days by julianday": (Row.at < func.julianday("now") - 1, True),
    "a time and seconds by unixepoch": (Row.plain < func.unixepoch("now") - 3600, True),
    "the same, labelled": (Row.plain < (func.unixepoch("now") - 3600).label("then"), True),
    "the same, as newer": (func.unixepoch("now") - 3600 < Row.plain, False),
    "a time and seconds of the clock": (Row.plain < part_of("epoch", func.now()), True),
    "a time and seconds by cast": (Row.plain < cast_of(func.strftime("%s", "now"), Integer), True),
    "a time and a number": (Row.plain < 99_999_999_999, True),
    "a time and a column of numbers": (Row.plain > Row.number, False),
    "a time and a column of seconds": (Row.plain == Row.epoch, True),
    "a time among numbers": (Row.plain.not_in([1, 2, Row.number]), False),
    "a time between numbers": (Row.plain.between(0, 99_999_999_999), True),
    "a time or another, and a number": (func.coalesce(Row.plain, Row.midnight) < func.unixepoch("now"), True),
    "a time and one of two numbers": (
        Row.plain < case_of((Row.number == 7, func.unixepoch("now")), else_=func.unixepoch("now") - 60),
        True,
    ),
    "a duration and seconds": (Row.span < 3600 * 24, True),
    "a duration and a column of seconds": (Row.span < Row.number, True),
    "a day and a number of days": (Row.day < 99_999, True),
    "a time of the day and an hour": (Row.clock < 13, True),
    "SQLite's own time and seconds by unixepoch": (func.unixepoch(Row.plain) >= func.datetime(Row.plain), True),
    "SQLite's own day and a number": (func.date(Row.plain) < 99_999, True),
    "days by julianday and a time": (func.julianday(Row.plain) > THEN, True),
    "a number and a time": (Row.number < NOW, False),
    "a time without microseconds and one that has them": (func.datetime(Row.midnight) == MIDNIGHT, True),
    "the same, among others": (func.datetime(Row.midnight).in_([MIDNIGHT, THEN]), True),
    "the same, the other way round": (literal(MIDNIGHT) != func.datetime(Row.midnight), False),
    "a day and a time, by SQLite's own function": (func.date(Row.midnight) == MIDNIGHT, True),
    "a time of the day, by SQLite's own function": (func.time(Row.clock) == time(12), True),
    "a time in UTC and SQLite's own function of another zone": (
        Row.at < func.datetime(literal((NOW - 49 * HOUR).astimezone(timezone(14 * HOUR))), "+0 hours"),
        False,
    ),
    "a time and the text of seconds": (Row.plain < func.strftime("%s", "now"), True),
    "a time and the text of a year": (Row.plain > func.strftime("%Y", "now"), False),
    "a day and the text of a day of a month": (Row.day < func.strftime("%d%m", "now"), True),
    "a time and the text of seconds by arithmetic": (Row.plain < func.strftime("%s", "now") + 0, True),
    "a time of the day and the clock": (Row.clock < func.now(), False),
    "a time of the day and a day": (Row.clock < func.current_date(), False),
    "a time of the day and a time": (Row.clock == Row.plain, True),
    "a time of a day and SQLite's own time of the day": (func.time(Row.plain) < Row.midnight, False),
    "a duration and a time": (Row.span < Row.plain, False),
    "a duration and SQLite's own time": (Row.span < func.datetime("now"), False),
    "a time and a truth": (Row.plain == True, True),  # noqa: E712  # SQL
    "a time that is a truth": (Row.plain.is_(True), True),
    "text and a truth": (Row.text == True, True),  # noqa: E712  # SQL
    "text less than a number": (Row.text < 10, True),
    "text less than one by arithmetic": (Row.text < Row.number + 3, True),
    "text less than the length of a text": (Row.text < func.length("0123456789"), True),
    "text of SQLite's own and a number": (func.lower(Row.text) == 7, True),
    "text of SQLite's own less than a number": (func.trim(Row.text) < 10, True),
    "text that is joined and a number": (Row.text + "0" == 70, True),
    "a number by cast to text": (cast_of(Row.number, String) < 10, True),
    "json by its kind as text, and a number": (Row.data["n"].as_string() < 9, False),
    "a number that SQLite computes and a text": (func.length(Row.text) == "1", True),
    "a number by arithmetic and a text": (Row.number + 1 == literal("8"), True),
    "the least of two numbers and a word": (func.min(Row.number, 3) < "low", False),
    "a truth and a number": (Row.flag == 2, True),
    "json and the start of a text": (starts_with(Row.data["text"], "x"), True),
    "json and the part that SQLite's own function gives": (Row.data["n"] == func.json_extract(Row.data, "$.n"), True),
    "json and a column of text": (Row.data["word"] == Row.text, True),
    "json and text of SQLite's own": (Row.data["text"] == func.lower("X"), True),
    "a time and a subquery of seconds": (Row.plain < select(func.unixepoch("now")).scalar_subquery(), True),
    "a subquery of times and seconds": (select(Row.plain).scalar_subquery() < func.unixepoch("now"), True),
    "a time among a subquery of seconds": (Row.plain.in_(select(func.unixepoch(Row.plain))), True),
    "a number and a word in a subquery": (Row.number < select(literal("low")).scalar_subquery(), False),
    "a number and an enum that is kept by its name": (Row.level == 10, True),
    "the same, among numbers": (Row.level.not_in([10]), False),
    "the same, distinct": (Row.level.is_distinct_from(10), False),
    "a time at midnight and a day": (Row.midnight == MIDNIGHT.date(), True),
    "a time at midnight up to a day": (Row.midnight <= MIDNIGHT.date(), True),
    "a time at midnight after a day": (Row.midnight > MIDNIGHT.date(), False),
    "a time at midnight among days": (Row.midnight.in_([MIDNIGHT.date()]), True),
    "a time at midnight until a day": (Row.midnight.between(date(2000, 1, 1), MIDNIGHT.date()), True),
    "a day from a time on": (Row.day >= MIDNIGHT, True),
    "a day before a time": (Row.day < MIDNIGHT, False),
    "a day from a time on until another": (Row.day.between(MIDNIGHT, NOW.replace(tzinfo=None)), True),
    "a time or a day, and a day": (func.coalesce(Row.midnight, null()) == MIDNIGHT.date(), True),
    "a time and the text of one with a T": (Row.midnight >= MIDNIGHT.isoformat(), True),
    "a time and the text of one without microseconds": (Row.midnight == MIDNIGHT.isoformat(sep=" "), True),
    "a time of the day and its text without seconds": (Row.clock == "12:00", True),
    "a time of the day between texts with one digit": (Row.clock.between("9:00", "13:00"), True),
    "a duration and its text": (Row.span == "3:00:00", True),
    "text or a text, and a number": (func.coalesce(Row.text, "0") == 7, True),
    "one of two texts, more than a number": (case_of((Row.text == "7", "0"), else_="5") > 9, False),
    "the greatest of texts in a subquery, and a number": (select(func.max(Row.text)).scalar_subquery() > 9, False),
    "a count in a subquery, and a text": (select(func.count(Part.id)).scalar_subquery() == "1", True),
    "a length less than a text": (func.length(Row.text) < func.trim(Row.text), False),
    "a replaced text and a number": (func.replace(Row.text, "7", "8") == 8, True),
    "a text of iif and a number": (func.iif(Row.text == "7", "1", "0") == 1, True),
    "json that is said to be a number": (type_coerce(Row.data["n"], Integer) == 10, True),
    "json's truth by its word": (Row.data["yes"].as_string() == "true", True),
    "json's truth and a word": (Row.data["yes"].as_boolean() == "true", True),
    "arithmetic of decimals that is equal": (Row.tenth * 3 == Decimal("0.3"), True),
    "a sum of decimals that is equal": (
        select(func.sum(Row.tenth)).scalar_subquery() + Row.tenth + Row.tenth == Decimal("0.3"),
        True,
    ),
    "the rest of a decimal": (Row.total % 1 == Decimal("0.5"), True),
    "the rest of a float": (Row.ratio % 1 == 0.5, True),
    "a quarter of the year": (part_of("quarter", Row.january) == 1, True),
    "a week of the year": (part_of("week", Row.january) == 2, True),
    "a decimal as text": (cast_of(Row.tenth, String) == "0.10", True),
    "a truth as text": (cast_of(Row.flag, String) == "true", True),
    "a UUID as text": (cast_of(Row.token, String) == str(TOKEN), True),
    "a time as text": (cast_of(Row.midnight, String) == str(MIDNIGHT), True),
}
RIGHT: dict[str, tuple[Any, bool]] = {
    "the clock": (Row.plain < func.now(), True),
    "the clock and an UtcDateTime": (Row.at < func.now(), True),
    "a time of another zone, as an UtcDateTime": (
        Row.at < literal((NOW - 49 * HOUR).astimezone(timezone(14 * HOUR)), UtcDateTime()),
        False,
    ),
    "a time of another zone beside the column": (Row.at < (NOW - 47 * HOUR).astimezone(timezone(-12 * HOUR)), True),
    "a time in UTC by no type": (Row.at < literal(NOW), True),
    "an interval": (Row.span > HOUR, True),
    "a longer interval": (Row.span < 5 * HOUR, True),
    "an interval or another": (func.coalesce(Row.span, HOUR) > 2 * HOUR, True),
    "the greatest interval": (select(func.max(Row.span)).scalar_subquery() > HOUR, True),
    "an interval in seconds": (part_of("epoch", Row.span) == 10_800, True),
    "SQLite's own modifier": (Row.plain < func.datetime("now", "-1 hour"), True),
    "its own modifier of an UtcDateTime": (Row.at > func.datetime("now", "-1 hour"), False),
    "days by julianday": (func.julianday("now") - func.julianday(Row.plain) > 1 / 24, True),
    "seconds by unixepoch": (func.unixepoch("now") - func.unixepoch(Row.plain) > 3600, True),
    "seconds as a number": (cast_of(func.strftime("%s", Row.plain), Integer) < 99_999_999_999, True),
    "an hour as text": (func.strftime("%H", Row.plain) < "30", True),
    "seconds that are part of a time": (part_of("epoch", Row.plain) < 99_999_999_999, True),
    "a day": (Row.day < func.current_date(), True),
    "a day and a date": (Row.day > date(2000, 1, 1), True),
    "a day of a time": (func.date(Row.plain) == Row.day, True),
    "a day that begins before a time": (Row.day <= Row.plain, True),
    "a time that is not": (Row.plain.is_(None), False),
    "a typed NULL": (case_of((Row.number == 7, Row.plain), else_=cast_of(null(), DateTime)) < func.now(), True),
    "arithmetic of numbers": (Row.number * 2 + 1 == 15, True),
    "arithmetic of decimals": (Row.total / 2 > Decimal(5), True),
    "a number with the text of one": (Row.number < "10", True),
    "text that is joined": (Row.text + "a" == "7a", True),
    "seconds of a type that keeps numbers": (Row.epoch + 3600 < literal_column("99999999999"), True),
    "one of an enum": (Row.size.in_([Size.large, Size.medium]), True),
    "json by its kind": (Row.data["n"].as_integer() > 5, True),
    "json that is not there, as text": (Row.data["nowhere"].as_string().is_(None), True),
    "json's null": (Row.data["nothing"] == JSON.NULL, True),
    "an empty list": (Row.data["none"] == [], True),
    "json and the same": (Row.data["n"] == Row.data["n"], True),
    "json among json": (Row.data["n"].in_([Row.data["nine"], Row.data["n"]]), True),
    "json and json of case": (Row.data["n"] == case_of((Row.text == "7", literal(10, JSON)), else_=literal(11, JSON)), True),
    "json and a column of numbers, which reads its text as a number": (Row.data["n"] > Row.number, True),
    "json and a number by cast, which does so too": (Row.data["n"] == cast_of(func.length("0123456789"), Integer), True),
    "json by its kind, and a number": (Row.data["n"].as_integer() > Row.number, True),
    "a decimal and json by its kind": (Row.total > Row.data["n"].as_float(), True),
    "json by its kind, or a number": (func.coalesce(Row.data["nowhere"].as_integer(), 0) == 0, True),
    "a number among columns": (Row.number.in_([Row.id, Row.number]), True),
    "a number not among columns": (Row.number.not_in([Row.id]), True),
    "a number among columns and numbers": (Row.number.in_([Row.id, 7]), True),
    "a time among columns": (Row.plain.in_([Row.midnight, Row.plain]), True),
    "an UtcDateTime not among columns": (Row.at.not_in([Row.midnight]), True),
    "a number in a subquery": (Row.number.in_(select(Row.number)), True),
    "two columns among pairs": (tuple_(Row.number, Row.text).in_([(7, "7")]), True),
    "a number and seconds of the clock": (Row.number < func.unixepoch("now"), True),
    "the same, of the clock's function": (Row.number < func.unixepoch(func.now()), True),
    "a number and the clock's seconds by extract": (Row.number < part_of("epoch", func.now()), True),
    "a number and seconds by cast": (Row.number < cast_of(func.strftime("%s", "now"), Integer), True),
    "a number and the text of seconds, which its column reads as a number": (Row.number < func.strftime("%s", "now"), True),
    "a number and the length of a text": (Row.number > func.length("abc"), True),
    "a number and a place in a text": (Row.number > func.instr(Row.text, "q"), True),
    "a number and json's by its path": (Row.number < func.json_extract(Row.data, "$.n"), True),
    "a number and one by case": (Row.number > case_of((Row.text == "x", 100), else_=1), True),
    "a number and days by julianday": (Row.number > func.julianday("now") - func.julianday(Row.plain), True),
    "a number and the texts of some": (Row.number.in_(["6", "7"]), True),
    "a truth": (Row.flag == True, True),  # noqa: E712  # SQL
    "a truth and the text of its number": (Row.flag == "1", True),
    "text and a formatted number": (func.strftime("%H", Row.clock) == func.printf("%02d", 12), True),
    "seconds of text with those of a type of its own": (func.strftime("%s", Row.plain) < part_of("epoch", func.now()), True),
    "a time, or 0 where there is none": (func.coalesce(Row.plain, 0) < func.now(), True),
    "later than a time, or 0 where there is none": (Row.plain > case_of((Row.number == 0, Row.plain), else_=0), True),
    "a column of seconds and a time": (Row.epoch < NOW, True),
    "a column of seconds and seconds of the clock": (Row.epoch < func.unixepoch(func.now()), True),
    "a time that its type turns into seconds, and seconds": (Row.unix < func.unixepoch("now"), True),
    "a time of digits alone, and its number": (Row.digits < 20_990_101_000_000, True),
    "seconds on both sides": (func.unixepoch(Row.plain) < func.unixepoch("now") - 3600, True),
    "a duration in seconds, by unixepoch": (func.unixepoch(Row.span) == 10_800, True),
    "SQLite's own text on both sides": (func.datetime(Row.midnight) == func.datetime(MIDNIGHT), True),
    "SQLite's own text and that of the clock": (func.datetime("now", "-1 hour") == func.now(), False),
    "a day by SQLite's own function, and a date": (func.date(Row.midnight) == MIDNIGHT.date(), True),
    "a time of the day and SQLite's own text of one": (Row.clock < func.strftime("%H:%M", Row.clock), False),
    "a time of the day and that of the clock": (Row.clock >= func.time(Row.clock), True),
    "a day and SQLite's own text of one": (Row.day == func.strftime("%Y-%m-%d", Row.day), True),
    "text and a number": (Row.text == 7, True),
    "text less than a column of numbers": (Row.text <= Row.number, True),
    "text and the text of a number": (Row.text < "8", True),
    "text of SQLite's own and a column of numbers": (func.lower(Row.text) == Row.number, True),
    "text and a length": (Row.text == func.length("1234567"), True),
    "json by its kind as text": (Row.data["text"].as_string().startswith("x"), True),
    "json by its kind as text, and a column": (Row.data["word"].as_string() == Row.text, True),
    "a truth and 1": (Row.flag == 1, True),
    "a number by cast to text, and a text": (cast_of(Row.number, String) == "7", True),
    "json as text": (cast_of(Row.data["n"], String) == "10", True),
    "a time and a subquery of times": (Row.plain <= select(func.max(Part.at)).scalar_subquery(), True),
    "a number and a subquery of numbers": (Row.number > select(func.count(Part.id)).scalar_subquery(), True),
    "a time and a subquery of SQLite's own time": (Row.plain < select(func.datetime("now", "-1 hour")).scalar_subquery(), True),
    "a number among a subquery of numbers": (Row.number.in_(select(func.length(literal("1234567")))), True),
    "an enum by its own, which is a number too": (Row.level == Level.high, True),
    "an enum by its name": (Row.level == "high", True),
    "a time from a day on": (Row.midnight >= MIDNIGHT.date(), True),
    "a time before a day": (Row.midnight < MIDNIGHT.date() + timedelta(days=1), True),
    "a time from a day on, before another": (
        and_(Row.plain >= date(2000, 1, 1), Row.plain < date(2999, 1, 1)),
        True,
    ),
    "a day up to a time": (Row.day <= MIDNIGHT, True),
    "a day after a time": (Row.day > MIDNIGHT, False),
    "a day by SQLite's own function, and a day": (func.date(Row.midnight) <= MIDNIGHT.date(), True),
    "a day and its text": (Row.day == MIDNIGHT.date().isoformat(), True),
    "a time after the text of a day": (Row.midnight > "2000-01-01", True),
    "a time and its whole text": (Row.midnight == f"{MIDNIGHT.isoformat(sep=' ')}.000000", True),
    "text or a text, and a text": (func.coalesce(Row.text, "0") == "7", True),
    "a number or one, and a number": (func.coalesce(Row.number, 0) == 7, True),
    "arithmetic of decimals, rounded": (func.round(Row.tenth * 3, 2) == Decimal("0.3"), True),
    "arithmetic of whole numbers that is equal": (Row.number % 2 == 1, True),
    "a sum of whole numbers": (select(func.sum(Row.number)).scalar_subquery() == 7, True),
    "a decimal that is equal": (Row.tenth == Decimal("0.1"), True),
    "a month": (part_of("month", Row.january) == 1, True),
    "a day as text": (cast_of(Row.day, String) == MIDNIGHT.date().isoformat(), True),
    "json's text by its kind": (Row.data["text"].as_string() == "x", True),
    "json's truth by its kind": (Row.data["yes"].as_boolean().is_(True), True),
    "a UUID": (Row.token == TOKEN, True),
    "a plain time and one in UTC": (Row.plain == SAME_IN_UTC, True),
    "a time with a zone and one in UTC": (Row.zoned.in_([SAME_IN_UTC]), True),
    "a type that turns a time of any zone into seconds": (Row.epoch < NOW.astimezone(timezone(14 * HOUR)), True),
    "json that is nothing, as a whole": (Row.data != [], True),
    "json's null, as a whole": (Row.data != JSON.NULL, True),
    "json that is not there, as a whole": (Row.data.is_(None), False),
    "a time before another within case": (Row.at <= case_of((Row.plain > literal(THEN), Row.at), else_=NOW), True),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_sqlite_computes_wrongly_is_refused_with_a_cure_and_on_postgresql_it_is_not(sqlite: Connection, name: str) -> None:
    clause, meant = WRONG[name]
    why = reason_to_refuse_expression(clause, sqlite.dialect)
    assert why is not None
    assert why.startswith("on SQLite ")
    assert ": " in why, "the cure"
    assert reason_to_refuse_expression(clause, POSTGRES) is None
    assert holds(sqlite, clause) is not meant, "it is right, and must not be refused"


@pytest.mark.parametrize("name", RIGHT)
def test_what_sqlite_computes_rightly_is_not_refused(sqlite: Connection, name: str) -> None:
    clause, meant = RIGHT[name]
    assert reason_to_refuse_expression(clause, sqlite.dialect) is None
    assert holds(sqlite, clause) is meant


@pytest.mark.parametrize("clause", [cast_of(Row.data["text"], String) == "x", cast_of(Row.data["text"], String).in_(["1", "x"])])
def test_text_of_json_that_keeps_its_quotes_is_refused_on_each_database(sqlite: Connection, clause: Any) -> None:
    for dialect in (sqlite.dialect, POSTGRES):
        assert "write .as_string() and no cast" in str(reason_to_refuse_expression(clause, dialect))
    assert not holds(sqlite, clause)


@pytest.mark.parametrize("clause", [Row.token == "no UUID", Row.january.in_([date(2026, 1, 5), literal("x", Date)])], ids=["one", "among"])
def test_a_value_that_its_type_does_not_take_is_refused(sqlite: Connection, clause: Any) -> None:
    why = str(reason_to_refuse_expression(clause, sqlite.dialect))
    assert "cannot be asked with '" in why
    assert "give it a value of the column's type" in why


class Paper(Base):
    __tablename__ = "papers"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    before: Mapped[dict[str, Any]] = mapped_column(JSON)
    binary: Mapped[dict[str, Any]] = mapped_column(JSON().with_variant(postgresql.JSONB(), "postgresql"))


OBJECT = {"a": 1, "b": 2}
WHOLE: dict[str, tuple[Any, bool]] = {
    "equal": (Paper.data == OBJECT, True),
    "not equal": (Paper.data != OBJECT, False),
    "among": (Paper.data.in_([{}, OBJECT]), True),
    "not among": (Paper.data.not_in([OBJECT]), False),
    "distinct": (Paper.data.is_distinct_from(OBJECT), False),
    "another column": (Paper.data == Paper.before, True),
    "within case": (Paper.data == case_of((Paper.id == 1, literal(OBJECT, JSON)), else_=Paper.before), True),
    "JSONB, which SQLite has not": (Paper.binary == OBJECT, True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_json_as_a_whole_is_text_on_sqlite_and_is_compared_on_postgresql_as_jsonb_alone(sqlite: Connection, name: str) -> None:
    clause, meant = WHOLE[name]
    other = {"b": 2, "a": 1}
    with sqlite.begin_nested() as point:
        sqlite.execute(insert(Paper).values(id=1, data=other, before=OBJECT, binary=other))
        assert (sqlite.execute(select(Paper.id).where(clause)).first() is not None) is not meant
        point.rollback()
    assert "on SQLite" in str(reason_to_refuse_expression(clause, sqlite.dialect))
    assert "compare what is in it" in str(reason_to_refuse_expression(clause, sqlite.dialect))
    why = reason_to_refuse_expression(clause, POSTGRES)
    assert (why is None) if name.startswith("JSONB") else ("PostgreSQL has no operator" in str(why))
