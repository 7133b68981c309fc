"""Canonical texts of keys and occurrences: the same on each database, in each zone and release; and the key that is made of them."""

from __future__ import annotations

import enum
import json
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundstate.values.errors import GroundstateError
from groundstate.values.keys import call_key, key_name_under, occurrence_of, occurrence_text, record_text, record_values, text, value_of


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class Level(enum.IntEnum):
    LOW = 1


class Kind(enum.StrEnum):
    BOOK = "a book"


# ---- stability: a change of any of these changes keys that providers remember ---------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("7", "7"),
        ("  Ünïcode \n", "  Ünïcode \n"),
        ("", ""),
        (None, ""),
        (7, "7"),
        (-7, "-7"),
        (10**30, "1" + 30 * "0"),
        (True, "true"),
        (False, "false"),
        (1.5, "1.5"),
        (1e300, "1e+300"),
        (Decimal("1.0"), "1"),
        (Decimal("1.00"), "1"),
        (Decimal("1E+1"), "10"),
        (Decimal("-0.00"), "0"),
        (Decimal("0.10"), "0.1"),
        (Decimal("-12.50"), "-12.5"),
        (Decimal("1E-9"), "0.000000001"),
        (uuid.UUID("0B4D1C6E-8C9B-4B0A-9A43-5D1C1A6F2F11"), "0b4d1c6e-8c9b-4b0a-9a43-5d1c1a6f2f11"),
        (date(2026, 2, 3), "2026-02-03"),
        (time(4, 5), "04:05:00"),
        (time(4, 5, 6, 7), "04:05:06.000007"),
        (timedelta(days=1, milliseconds=1), "86400.001000"),
        (b"\x00\xff", "00ff"),
        (datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC), "2026-02-03T04:05:06.000007Z"),
        (datetime(2026, 2, 3, 4, 5, 6), "2026-02-03T04:05:06.000000Z"),  # noqa: DTZ001  # naive means UTC
        (Size.SMALL, "SMALL"),
        (Level.LOW, "LOW"),
        (Kind.BOOK, "BOOK"),
    ],
    ids=repr,
)
def test_a_value_has_one_text_for_ever(value: object, written: str) -> None:
    assert text(value) == written


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (("shop", "charge", "7", ""), "a53eb45f4c00b087b444ea9d7cc81718a9a5d7efa99dc87398f748ee98b7b09c"),
        (("shop", "charge", "7", "2026-02-03T04:05:06.000000Z"), "e2cc98d245c74de245dd5f1674d150fcb2729c0a57b33811feecd3c67d4faa11"),
        (("shop", "charge", '["a\\"b",7]', ""), "a82c8ce03b6941696187b843dd120b05c459f8ad18c226dd2612e5fd931ca811"),
        (("läden", "größe", "ключ", ""), "bcabfc05b1bd2955630e5647e771118d176dca92785a8ce910984018126f8a2d"),
    ],
    ids=str,
)
def test_a_call_has_one_key_for_ever(parts: tuple[str, str, str, str], key: str) -> None:
    assert call_key(*parts) == key


def test_a_composite_key_is_json_with_numbers_and_texts_apart() -> None:
    assert record_text([7]) == "7"
    assert record_text(["7"]) == "7"
    assert record_text([7, "7"]) == '[7,"7"]'
    assert record_text(['a"b', "c,d]", "\\", "ü", None]) == '["a\\"b","c,d]","\\\\","ü",""]'
    assert record_text([True, Decimal("1.0"), Level.LOW, Kind.BOOK]) == '["true","1","LOW","BOOK"]'


def test_an_occurrence_is_empty_for_none_and_its_text_for_one_and_json_for_several() -> None:
    assert occurrence_text([]) == ""
    assert occurrence_text([date(2026, 2, 3)]) == "2026-02-03"
    assert occurrence_text([date(2026, 2, 3), 7]) == '["2026-02-03","7"]'


def test_a_type_that_has_no_text_is_refused_with_the_cure() -> None:
    with pytest.raises(GroundstateError, match="object cannot be part of a key: use a column of text, integer"):
        text(object())


# ---- one meaning, one text -------------------------------------------------------------------------------------------------------
zones = st.sampled_from(
    [UTC, *map(ZoneInfo, ("Europe/Berlin", "Australia/Lord_Howe", "Pacific/Chatham", "Asia/Kathmandu")), timezone(timedelta(minutes=-97))]
)
instants = st.datetimes(datetime(1900, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # hypothesis wants naive bounds


@given(instants, zones)
def test_an_instant_has_the_same_text_in_each_zone_and_naive_means_utc(moment: datetime, zone: Any) -> None:
    assert text(moment.astimezone(zone)) == text(moment) == text(moment.replace(tzinfo=None))


def test_the_hour_that_comes_twice_is_two_instants() -> None:
    first = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert (text(first), text(first.replace(fold=1))) == ("2026-10-25T00:30:00.000000Z", "2026-10-25T01:30:00.000000Z")


@given(st.lists(instants, min_size=2, max_size=2))
def test_texts_of_instants_sort_as_they_do(two: list[datetime]) -> None:
    one, other = two
    assert (one < other) == (text(one) < text(other))


decimals = st.decimals(-(10**12), 10**12, places=6, allow_nan=False, allow_infinity=False)


@given(decimals, st.integers(0, 9))
def test_a_decimal_has_the_same_text_however_many_zeros_were_written(value: Decimal, zeros: int) -> None:
    assert text(Decimal(f"{value:f}{'0' * zeros}")) == text(value)
    assert Decimal(text(value)) == value
    assert "E" not in text(value)


def test_a_decimal_is_never_rounded_whatever_context_is_on() -> None:
    long = Decimal(12345678901234567890123456789012345)
    assert text(long) == str(long)
    with localcontext() as context:
        context.prec = 3
        assert text(Decimal("1234.5")) == "1234.5"


def test_a_year_has_four_digits_on_each_platform() -> None:
    assert text(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00.000000Z"


# ---- there and back ----------------------------------------------------------------------------------------------------------------
cases: list[tuple[type, st.SearchStrategy[Any]]] = [
    (str, st.text()),
    (int, st.integers()),
    (bool, st.booleans()),
    (float, st.floats(allow_nan=False)),
    (Decimal, decimals),
    (uuid.UUID, st.uuids()),
    (datetime, instants),
    (date, st.dates()),
    (time, st.times()),
    (bytes, st.binary()),
    (timedelta, st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000))),
    (Size, st.sampled_from(Size)),
    (Level, st.sampled_from(Level)),
    (Kind, st.sampled_from(Kind)),
]
of_any_kind = st.sampled_from(cases).flatmap(lambda case: st.tuples(st.just(case[0]), case[1]))


@given(of_any_kind)
def test_a_value_comes_back_from_its_text(case: tuple[type, Any]) -> None:
    kind, value = case
    back = value_of(text(value), kind)
    assert back == value
    assert isinstance(back, kind)


@given(st.lists(of_any_kind, min_size=1, max_size=4))
def test_a_key_comes_back_from_its_text(parts: list[tuple[type, Any]]) -> None:
    kinds = [kind for kind, _ in parts]
    values = tuple(value for _, value in parts)
    assert record_values(record_text(values), kinds) == values


@given(
    st.lists(st.one_of(st.integers(), st.text()), min_size=2, max_size=4),
    st.lists(st.one_of(st.integers(), st.text()), min_size=2, max_size=4),
)
def test_two_composite_keys_have_one_text_only_where_they_are_one(one: list[Any], other: list[Any]) -> None:
    assert (record_text(one) == record_text(other)) == (one == other)
    assert json.loads(record_text(one)) == one


@given(st.lists(st.text(), max_size=4))
def test_an_occurrence_comes_back_in_its_parts(parts: list[str]) -> None:
    assert tuple(occurrence_of(occurrence_text(parts), len(parts))) == tuple(parts)


@pytest.mark.parametrize("written", ["7", "[7]", "[7,8,9]", "{}", "not JSON", ""])
def test_a_text_that_is_no_key_of_two_columns_is_refused_with_what_was_expected(written: str) -> None:
    with pytest.raises(ValueError, match="a JSON array of 2 values"):
        record_values(written, [int, int])


@pytest.mark.parametrize(("written", "kind"), [("seven", int), ("huge", Size), ("7", uuid.UUID), ("today", date), ("xyz", bytes)])
def test_a_text_that_is_no_value_is_refused(written: str, kind: type) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the words are Python's
        value_of(written, kind)


def test_a_text_that_is_no_decimal_and_no_array_of_values_is_refused_with_a_value_error() -> None:
    found = []
    for written, kinds in (("abc", [Decimal]), ("[[1],2]", [int, int])):
        try:
            record_values(written, kinds)
        except Exception as error:  # noqa: BLE001  # which it is, is what is asked
            found.append(isinstance(error, ValueError))
    assert found == [True, True]


# ---- the key of a call -------------------------------------------------------------------------------------------------------------
names = st.text(st.characters(exclude_categories=["Cc", "Cs"]))  # a name has no control character: one of them marks renamed apps
identities = st.tuples(names, names, st.text(), st.text())


@given(identities, identities)
def test_two_calls_have_one_key_only_where_they_are_one(one: tuple[str, str, str, str], other: tuple[str, str, str, str]) -> None:
    assert (call_key(*one) == call_key(*other)) == (one == other)
    assert len(call_key(*one)) == 64


def test_parts_cannot_be_moved_from_one_to_the_next() -> None:
    assert call_key("a", "b", "c", "") != call_key("a", "b", "", "c")
    assert call_key("a", 'b","c', "d", "") != call_key("a", "b", "c", "d")


def test_a_call_keeps_its_key_when_its_app_is_renamed_and_when_it_is_renamed_once_more() -> None:
    renamed = key_name_under("shop", "charge")
    assert call_key("store", renamed, "7", "") == call_key("shop", "charge", "7", "")
    assert call_key("market", key_name_under("store", renamed), "7", "") == call_key("shop", "charge", "7", "")
