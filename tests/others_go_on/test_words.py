"""What a user's code made, and of which no words can be made."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import pytest

from groundstate import InDoubt, NotDone, Retry
from groundstate.cli.json_log import JsonLines
from groundstate.engine.sql import safe_text
from tests.engine.kit import until
from tests.others_go_on.conftest import MORE, Beside


class Speechless(Exception):
    """It cannot say what it is."""

    def __init__(self, raises: type[BaseException] = TypeError) -> None:
        self.raises = raises

    def __str__(self) -> str:
        raise self.raises

    __repr__ = __str__


class Sly(Exception):
    """It does not let itself be asked for its class, as proxies do that stand for nothing."""

    @property
    def __class__(self) -> type:
        raise TypeError("it stands for nothing")

    @__class__.setter
    def __class__(self, _kind: type) -> None: ...


class Refused(Speechless, NotDone):
    """The same, and it says that nothing was done."""


def _raise(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize("raises", [TypeError, SystemExit, RecursionError])
def test_a_handler_raises_what_says_nothing(beside: Beside, raises: type[BaseException]) -> None:
    beside.handled(lambda _order: _raise(Speechless(raises)))
    beside.go_on(f"Speechless: (no words can be made of it: {raises.__name__})", event="handler_failed")


def test_a_handler_raises_what_has_no_class(beside: Beside) -> None:
    beside.handled(lambda _order: _raise(Sly("sly")))
    beside.go_on("Sly: sly", event="handler_failed")


def test_a_call_raises_what_has_no_class(beside: Beside) -> None:
    beside.called(lambda: _raise(Sly("sly")), in_doubt=InDoubt.hold())
    beside.go_on("Sly: sly", event="call_in_doubt")


def test_a_call_raises_what_says_nothing(beside: Beside) -> None:
    beside.called(lambda: _raise(Speechless()), in_doubt=InDoubt.hold())
    beside.go_on("Speechless: (no words can be made of it: TypeError)", event="call_in_doubt")


def test_a_call_refuses_by_what_says_nothing_and_has_no_attributes(beside: Beside) -> None:
    async def refuse() -> NoReturn:
        raise Refused

    beside.called(refuse)
    beside.go_on("Refused: (no words can be made of it: TypeError)", event="call_failed")


@dataclass
class Mute:
    """An outcome that does not show itself, and whose comparison and copy fail too."""

    raises: type[BaseException]
    inner: Any = None

    def __repr__(self) -> str:
        raise self.raises

    def __eq__(self, other: object) -> bool:
        raise self.raises

    def __deepcopy__(self, memo: object) -> Mute:
        raise self.raises

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("raises", [TypeError, SystemExit])
def test_an_outcome_shows_nothing_of_itself(beside: Beside, raises: type[BaseException]) -> None:
    async def mute() -> Mute:
        return Mute(raises)

    beside.called(mute, kind=Mute | str, handler=lambda _outcome: _raise(ValueError("it is not taken")))
    beside.go_on("it is not taken", event="outcome_held")


def _deep(levels: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


def test_an_outcome_is_a_hundred_thousand_levels_deep(beside: Beside) -> None:
    async def deep() -> Any:
        return _deep(100_000)

    beside.called(deep, kind=list | str, handler=lambda _outcome: _raise(ValueError("it is not taken")))
    beside.go_on("it is not taken", event="outcome_held")


@pytest.mark.parametrize("raises", [TypeError, SystemExit])
def test_redact_fails_and_nothing_is_said_of_what_it_was_given(beside: Beside, raises: type[BaseException]) -> None:
    def redact(words: str) -> str:
        raise raises(words)

    beside.redact = redact
    card = ValueError(f"card {42}42")  # the traceback shows this line as it is written
    beside.handled(lambda _order: _raise(card))
    beside.go_on(f"left out, since `redact` raised {raises.__name__}", event="handler_failed")
    assert [line.levelname for line in beside.said.records if getattr(line, "event", None) == "redact_failed"] == ["ERROR"]
    assert "4242" not in beside.said.text


def test_redact_gives_no_text(beside: Beside) -> None:
    beside.redact = lambda _words: None
    beside.handled(lambda _order: _raise(ValueError("card 4242")))
    beside.go_on("left out, since `redact` raised TypeError", event="handler_failed")


def test_words_are_plain_text_whatever_type_they_are_of() -> None:
    class Text(str):
        __slots__ = ()

        def strip(self, *_chars: Any) -> NoReturn:
            raise TypeError

    class Fails(Exception):
        def __str__(self) -> str:
            return Text("no paper")

    assert safe_text.describe_exception(Fails()) == "Fails: no paper"


def test_a_line_of_json_is_written_whatever_its_fields_are() -> None:
    record = logging.makeLogRecord({"msg": "hello", "given": Speechless()})
    assert "no words can be made of it" in JsonLines().format(record)


def test_ctrl_c_of_a_person_is_no_failure_of_what_is_shown() -> None:
    with pytest.raises(KeyboardInterrupt):
        safe_text.describe_exception(Speechless(KeyboardInterrupt))


def test_a_handler_that_fails_is_told_with_its_table_its_try_and_when_the_next_one_is(beside: Beside) -> None:
    beside.handled(lambda _order: _raise(ValueError("no")), retry=MORE)
    beside.placed()
    beside.worker()
    until(lambda: beside.states() == ["held"], beside.attempts)
    first, second, last = beside.told("handler_failed")
    assert first.startswith("WARNING done on orders 1: the handler raised ValueError: no")
    assert first.endswith("; failure 1 of 3, tried again in 0.0 s")
    assert second.endswith("; failure 2 of 3, tried again in 0.0 s")
    assert last.endswith("; failure 3 of 3, and the last")


def test_without_a_limit_no_number_of_tries_is_told(beside: Beside) -> None:
    beside.handled(lambda _order: _raise(ValueError("no")), retry=Retry(times=None, first=timedelta(hours=2), longest=timedelta(hours=2)))
    beside.placed()
    beside.worker()
    beside.until_done()
    until(lambda: beside.told("handler_failed") != [])
    (line,) = beside.told("handler_failed")
    assert re.search(r"; failure 1, tried again in \d{4} s$", line)
