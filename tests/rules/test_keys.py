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
from groundstate.values.keys import (
    belongs_to_occurrence,
    call_key,
    canonical_text,
    key_name_with_app,
    occurrence_text,
    parse_occurrence,
    parse_value,
    record_text,
    split_record_text,
)


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
    assert canonical_text(value) == written


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
        canonical_text(object())


# ---- one meaning, one text -------------------------------------------------------------------------------------------------------
zones = st.sampled_from(
    [UTC, *map(ZoneInfo, ("Europe/Berlin", "Australia/Lord_Howe", "Pacific/Chatham", "Asia/Kathmandu")), timezone(timedelta(minutes=-97))]
)
instants = st.datetimes(datetime(1900, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # hypothesis wants naive bounds


@given(instants, zones)
def test_an_instant_has_the_same_text_in_each_zone_and_naive_means_utc(moment: datetime, zone: Any) -> None:
    assert canonical_text(moment.astimezone(zone)) == canonical_text(moment) == canonical_text(moment.replace(tzinfo=None))


def test_the_hour_that_comes_twice_is_two_instants() -> None:
    first = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert (canonical_text(first), canonical_text(first.replace(fold=1))) == ("2026-10-25T00:30:00.000000Z", "2026-10-25T01:30:00.000000Z")


@given(st.lists(instants, min_size=2, max_size=2))
def test_texts_of_instants_sort_as_they_do(two: list[datetime]) -> None:
    one, other = two
    assert (one < other) == (canonical_text(one) < canonical_text(other))


decimals = st.decimals(-(10**12), 10**12, places=6, allow_nan=False, allow_infinity=False)


@given(decimals, st.integers(0, 9))
def test_a_decimal_has_the_same_text_however_many_zeros_were_written(value: Decimal, zeros: int) -> None:
    assert canonical_text(Decimal(f"{value:f}{'0' * zeros}")) == canonical_text(value)
    assert Decimal(canonical_text(value)) == value
    assert "E" not in canonical_text(value)


def test_a_decimal_is_never_rounded_whatever_context_is_on() -> None:
    long = Decimal(12345678901234567890123456789012345)
    assert canonical_text(long) == str(long)
    with localcontext() as context:
        context.prec = 3
        assert canonical_text(Decimal("1234.5")) == "1234.5"


def test_a_year_has_four_digits_on_each_platform() -> None:
    assert canonical_text(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00.000000Z"


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
    back = parse_value(canonical_text(value), kind)
    assert back == value
    assert isinstance(back, kind)


@given(st.lists(of_any_kind, min_size=1, max_size=4))
def test_a_key_comes_back_from_its_text(parts: list[tuple[type, Any]]) -> None:
    kinds = [kind for kind, _ in parts]
    values = tuple(value for _, value in parts)
    texts = split_record_text(record_text(values), len(kinds))
    assert tuple(parse_value(one, kind) for one, kind in zip(texts, kinds, strict=True)) == values


@given(
    st.lists(st.one_of(st.integers(), st.text()), min_size=2, max_size=4),
    st.lists(st.one_of(st.integers(), st.text()), min_size=2, max_size=4),
)
def test_two_composite_keys_have_one_text_only_where_they_are_one(one: list[Any], other: list[Any]) -> None:
    assert (record_text(one) == record_text(other)) == (one == other)
    assert json.loads(record_text(one)) == one


@given(st.lists(st.text(min_size=1).filter(lambda part: not part.startswith(":") and "\x00" not in part), max_size=4))
def test_an_occurrence_comes_back_in_its_parts(parts: list[str]) -> None:
    assert tuple(parse_occurrence(occurrence_text(parts), len(parts))) == tuple(parts)


# ---- an occurrence has one text, and a text one occurrence -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "written", "key"),
    [
        (["a"], "a", "4638b41e423623a3270e6c15d8774939a50fb609e5505d79fec866f861484841"),
        (["null"], "null", "f96bcc756c585e02402687c99ac62eb2feb6eaeb153224889e406a0b55fcebcc"),
        (["empty"], "empty", "b3c97a0936a80ad70269fb33d951aed9423384eb516c0e01b1355abc62490d43"),
        ([":"], ":", "9372b1bb2114e9c0952ccfb8420161954f287ecd0262e19dac1e28c0600a5309"),
        (["a:b"], "a:b", "a41ddfb9c36b59744a233667dfe8101b5eb68528153ecf7311a13ff31cc81cb8"),
        (["ü\x1f"], "ü\x1f", "3f5f44cdca111f3ca6a36a0f3cd2df356682be074df8bfbc6de2f4238e822d9f"),
        (['[""]'], '[""]', "b647e1fad175c9ab076f09d36ba85784b0205cc38c721add11bd4b453917195c"),
        ([7], "7", "2e685c92154cecd4ef460f3117ff049e25c2fed022f4af216a7d3b4d9df06245"),
        ([True], "true", "8ba2a6a14bbbec0a91866b95d2fa49c36a0e22780bdbae8f71c450ee00910baf"),
        ([1.5], "1.5", "2cd5a76be94495b774982814a30cf6260879b9ac8306b2f66eeb5802bf87867c"),
        ([-0.0], "-0.0", "b8b7d9b2d49fd1e5fdf83b70061987983935bfa64ac5d90e67e6b9cc18b279fc"),
        ([0.0], "0.0", "45088b5a8de92b9142228bffc9cabd110644954570ddd5bdab7c1c5b5e664194"),
        ([Decimal("1.50")], "1.5", "2cd5a76be94495b774982814a30cf6260879b9ac8306b2f66eeb5802bf87867c"),
        ([uuid.UUID(int=7)], "00000000-0000-0000-0000-000000000007", "22f9282e0523a91c5f68e2cec498ba6645c6d65346866bb10d5a170d1a7130c8"),
        ([date(2026, 2, 3)], "2026-02-03", "ef6036026ef8e7da5202e106b989141212f8e7da8a0c24a0f087888528a9f077"),
        ([time(4, 5)], "04:05:00", "96a975855360a51f0b7968313bad063a16fd709b6b7caa6401659f4c297eb2d3"),
        ([timedelta(microseconds=-1)], "-0.000001", "18c7c664070174998d5cc568c652d39feb50dc797caa59420dc4614ba96ac4f8"),
        ([b"\x00"], "00", "c7a755bbb679bd4ee872dcc846adb846dffca563577597248d7905af7d2616a4"),
        (
            [datetime(2026, 2, 3, tzinfo=UTC)],
            "2026-02-03T00:00:00.000000Z",
            "4560fb7a86b79116a2c14ef116798ccad305748bd46989507768e047c4696b5c",
        ),
        ([Size.SMALL], "SMALL", "ac76f57a9486a57bc25adaa9c6e86b576e9a24cb6ad2f26fb48399c724504797"),
        ([None], "", "425c448aebc1186936486154a8b2ed3256ce00556755c31273bd4a6d53e48038"),
        (["a", 7], '["a","7"]', "e12ccfafe28460d8425195cc8abdd84aa0a90493a828ae6d6b7379475cbc3ffa"),
        ([None, 7], '["","7"]', "1c7f60dcac5ba21d0e16c2cb4d9cebfcf1dbb5585ae916a6d1baee13f044f7c8"),
        ([date(2026, 2, 3), None], '["2026-02-03",""]', "844b6eaf14e0bc0d51a582011c6a2cba8941452d8ea94dd2ddfa7c554fc9de0e"),
        (["a\x1f", "\x1fb"], '["a\\u001f","\\u001fb"]', "e8b47291e66b07dd421e59209759c2465de1e4dfc34d0dc9d821dbd54a416762"),
    ],
    ids=repr,
)
def test_a_round_that_had_a_text_of_its_own_keeps_it_and_its_key(values: list[object], written: str, key: str) -> None:
    assert occurrence_text(values) == written
    assert call_key("shop", "charged", "1", written) == key


MARKS = [":null:", ":empty:", "::null::", "::empty::", ":::null:", ":null", "null", "empty", '[""]', '[":null:"]', "\x1f", ":"]
texts = st.one_of(st.text(), st.sampled_from(["", *MARKS]), st.text(":nulempty", max_size=9))
HELD: dict[str, tuple[Any, bool]] = {  # of each type of column: its values, and whether an empty text may be among them
    "text": (texts, True),
    "binary": (st.binary(), True),
    "integer": (st.integers(), False),
    "boolean": (st.booleans(), False),
    "double": (st.floats(allow_nan=False), False),
    "numeric": (decimals.map(lambda value: value + 0), False),  # which has no -0
    "uuid": (st.uuids(), False),
    "date": (st.dates(), False),
    "time": (st.times(), False),
    "interval": (st.timedeltas(), False),
    "instant": (instants, False),
    "enum": (st.sampled_from(Size), False),
}
columns = st.lists(st.sampled_from(sorted(HELD)), min_size=1, max_size=3)


def _values(kinds: list[str]) -> Any:
    return st.tuples(*[st.one_of(st.none(), HELD[kind][0]) for kind in kinds])


def _same(one: object, other: object) -> bool:
    return one == other and (not isinstance(one, float) or repr(one) == repr(other))


@given(columns.flatmap(lambda kinds: st.tuples(st.just(kinds), st.lists(_values(kinds), min_size=2, max_size=2))))
def test_two_rounds_have_one_text_only_where_they_are_one(given_: tuple[list[str], list[tuple[object, ...]]]) -> None:
    kinds, (one, other) = given_
    may_be_empty = [HELD[kind][1] for kind in kinds]
    same = all(_same(left, right) for left, right in zip(one, other, strict=True))
    assert (occurrence_text(one, may_be_empty) == occurrence_text(other, may_be_empty)) == same


@given(texts, texts)
def test_no_text_is_that_of_null_or_of_another(one: str, other: str) -> None:
    assert (occurrence_text([one]) == occurrence_text([other])) == (one == other)
    for may_be_empty in ([], [True]):
        assert occurrence_text([one]) != occurrence_text([None], may_be_empty)


@given(st.lists(st.one_of(st.none(), texts.filter(lambda text: "\0" not in text)), min_size=1, max_size=3))  # older code wrote no NUL
def test_what_older_code_wrote_for_null_or_an_empty_text_is_that_round_still(values: list[str | None]) -> None:
    formerly = (
        canonical_text(values[0])
        if len(values) == 1
        else json.dumps([canonical_text(one) for one in values], separators=(",", ":"), ensure_ascii=False)
    )
    now = occurrence_text(values, [True] * len(values))
    assert belongs_to_occurrence(formerly, now, len(values))
    assert belongs_to_occurrence(now, now, len(values))


def test_a_null_and_an_empty_text_of_today_are_two_rounds() -> None:
    null, empty = occurrence_text([None], [True]), occurrence_text([""], [True])
    assert not belongs_to_occurrence(null, empty, 1)
    assert not belongs_to_occurrence(empty, null, 1)
    assert not belongs_to_occurrence("a", empty, 1)


@given(st.timedeltas())
def test_a_duration_of_whatever_length_is_written_to_the_microsecond(value: timedelta) -> None:
    assert parse_value(canonical_text(value), timedelta) == value


@pytest.mark.parametrize("written", ["7", "[7]", "[7,8,9]", "{}", "not JSON", ""])
def test_a_text_that_is_no_key_of_two_columns_is_refused_with_what_was_expected(written: str) -> None:
    with pytest.raises(ValueError, match="a JSON array of 2 values"):
        split_record_text(written, 2)


@pytest.mark.parametrize(("written", "kind"), [("seven", int), ("huge", Size), ("7", uuid.UUID), ("today", date), ("xyz", bytes)])
def test_a_text_that_is_no_value_is_refused(written: str, kind: type) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the words are Python's
        parse_value(written, kind)


def test_a_text_that_is_no_decimal_and_no_array_of_values_is_refused_with_a_value_error() -> None:
    with pytest.raises(ValueError, match="is not a number"):
        parse_value("abc", Decimal)
    with pytest.raises(ValueError, match="a JSON array of 2 values"):
        split_record_text("[[1],2]", 2)


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
    renamed = key_name_with_app("shop", "charge")
    assert call_key("store", renamed, "7", "") == call_key("shop", "charge", "7", "")
    assert call_key("market", key_name_with_app("store", renamed), "7", "") == call_key("shop", "charge", "7", "")
