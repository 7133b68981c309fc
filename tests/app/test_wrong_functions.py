"""Calls, finds, handlers and names that would lose or double something: refused where they are declared."""

from __future__ import annotations

import gc
import smtplib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NamedTuple, NewType

import httpx
import pytest
import sqlmodel
from pydantic import BaseModel, Field, PlainSerializer, RootModel, SecretBytes, SecretStr, field_serializer
from pydantic.dataclasses import dataclass as pydantic_dataclass
from sqlalchemy import MetaData, create_engine
from sqlalchemy.orm import Session

import groundstate
from groundstate import (
    Absent,
    App,
    DeclarationError,
    DeclarationWarning,
    ExternalService,
    Failure,
    IdempotencyKey,
    InDoubt,
    ReactionContext,
    Retry,
    Store,
    Unknown,
    not_done,
)
from tests.app.models import Base, DataBase, Item, Order, Parcel

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
_LAMBDA: Any = lambda order: order.status  # noqa: E731 - a function without a name


def _charge(order: Order) -> str:
    return ""


def _charge_many(orders: Sequence[Order]) -> Sequence[str]:
    return [""] * len(orders)


# ---- W10b: what surely means not done ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kind",
    [
        Exception,
        OSError,
        TimeoutError,
        BaseException,
        ConnectionError,
        ConnectionResetError,
        BrokenPipeError,
        httpx.TransportError,
        httpx.TimeoutException,
        httpx.ReadTimeout,
        httpx.RequestError,
        "builtins.OSError",
        "builtins.TimeoutError",
        "httpx.ReadTimeout",
        "never_imported.ReadTimeout",
        "never_imported.Timeout",
    ],
)
def test_w10b_a_type_that_a_time_out_is_never_means_not_done(kind: Any) -> None:
    with pytest.raises(DeclarationError, match="list only what surely means that nothing was sent"):
        ExternalService("bank", not_done=[kind])


def test_w10b_what_is_no_exception_type() -> None:
    for wrong in ("ConnectError", "httpx.", 3, int):
        given: Any = [wrong]
        with pytest.raises(DeclarationError, match="dotted path"):
            ExternalService("bank", not_done=given)
    for alone in (ConnectionRefusedError, "httpx.ConnectError", bool):
        given = alone
        with pytest.raises(DeclarationError, match="give a list"):
            ExternalService("bank", not_done=given)


def test_a_function_that_tells_what_was_not_done_is_a_plain_one() -> None:
    async def tells(error: Exception) -> bool:
        return False

    given: Any = [tells]
    with pytest.raises(DeclarationError, match="nothing can be awaited"):
        ExternalService("bank", not_done=given)
    ExternalService("bank", not_done=[lambda error: "refused" in str(error)])


def test_the_ready_made_lists_are_accepted_and_exist() -> None:
    service = ExternalService(
        "all",
        not_done=[*not_done.HTTPX, *not_done.REQUESTS, *not_done.SMTPLIB, *not_done.BOTOCORE, httpx.ConnectError, smtplib.SMTPConnectError],
    )
    assert len(service.spec.not_done) > 20
    for path in (*not_done.HTTPX, *not_done.SMTPLIB):
        if not isinstance(path, str):
            continue
        module, _, name = path.rpartition(".")
        kind = getattr(__import__(module), name)
        assert issubclass(kind, Exception)
        assert not issubclass(kind, TimeoutError)


# ---- services and calls --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_an_outside_makes_at_least_one_call(limit: Any) -> None:
    with pytest.raises(DeclarationError, match="at least 1 call"):
        ExternalService("bank", limit=limit)


@pytest.mark.parametrize("name", ["", " ", "a\nb", None])
def test_an_outside_has_a_name(name: Any) -> None:
    with pytest.raises(DeclarationError, match="printable"):
        ExternalService(name)


def test_w25_a_client_made_at_import_is_refused() -> None:
    made: Any = httpx.Client()
    with pytest.raises(DeclarationError, match=r"client=lambda: httpx.AsyncClient\(\)"):
        ExternalService("bank", client=made)
    made.close()


@pytest.mark.parametrize("timeout", [timedelta(), -SECOND, 30])
def test_a_time_out_is_more_than_zero(bank: ExternalService, timeout: Any) -> None:
    with pytest.raises(DeclarationError, match="more than zero"):
        bank.call(in_doubt=InDoubt.hold(), timeout=timeout)(_charge)
    with pytest.raises(DeclarationError, match="more than zero"):
        bank.call_many(size=2, in_doubt=InDoubt.hold(), timeout=timeout)(_charge_many)


def test_same_key_without_a_key(bank: ExternalService) -> None:
    with pytest.raises(DeclarationError, match="add a parameter `key: IdempotencyKey`"):
        bank.call(in_doubt=InDoubt.same_key(kept_for=DAY))(_charge)

    def charge(orders: Sequence[Order], ctx: ReactionContext) -> Sequence[str]:
        return []

    with pytest.raises(DeclarationError, match=r"keys: Sequence\[IdempotencyKey\]"):
        bank.call_many(size=2, in_doubt=InDoubt.same_key(kept_for=DAY))(charge)


def test_same_key_that_is_never_kept_long_enough(bank: ExternalService) -> None:
    def charge(order: Order, key: IdempotencyKey) -> str:
        return key

    with pytest.raises(DeclarationError, match="no second call would ever be made"):
        bank.call(in_doubt=InDoubt.same_key(kept_for=timedelta(seconds=60)))(charge)


def test_same_key_with_a_find_says_when_absent_is_believed(bank: ExternalService) -> None:
    @bank.call(in_doubt=InDoubt.same_key(kept_for=DAY))
    def charge(order: Order, key: IdempotencyKey) -> str:
        return key

    with pytest.raises(DeclarationError, match="settle_after="):

        @charge.lookup
        def _(order: Order) -> str | Absent:
            return Absent()


def test_ask_without_a_find_is_refused_when_all_is_declared(app: App, bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.lookup(settle_after=SECOND))(_charge)

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None: ...

    with pytest.raises(DeclarationError, match=r"@_charge.lookup"):
        app.check_declarations()

    @charge.lookup
    def _(order: Order) -> str | Absent:
        return Absent()

    app.check_declarations()
    with pytest.raises(DeclarationError, match="has a lookup already"):

        @charge.lookup
        def _(order: Order) -> str | Absent:
            return Absent()


@pytest.mark.parametrize("policy", [InDoubt.hold(), InDoubt.repeat()])
def test_a_find_that_is_never_asked_is_warned_of(bank: ExternalService, policy: Any) -> None:
    charge = bank.call(in_doubt=policy)(_charge)
    with pytest.warns(DeclarationWarning, match="is never asked under") as told:

        @charge.lookup
        def _(order: Order) -> str | Absent:
            return Absent()

    assert told[0].filename == __file__


def _maybe(order: Order) -> str | None:
    return None


def _found_or_none(order: Order) -> str | Absent | None:
    return None


def test_a_find_that_may_return_none_is_warned_of_where_none_is_no_outcome(bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.lookup(settle_after=SECOND))(_charge)
    found: Any = _found_or_none
    with pytest.warns(DeclarationWarning, match=r"its lookup .* None is taken for the outcome.*return Absent\(\)") as told:
        charge.lookup(found)
    assert told[0].filename == __file__


def test_a_find_may_return_none_where_that_is_an_outcome(bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.lookup(settle_after=SECOND))(_maybe)
    charge.lookup(_found_or_none)


def test_w11_a_find_must_be_able_to_say_absent(bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.lookup(settle_after=SECOND))(_charge)
    found: Any = _none_for_absent
    with pytest.raises(DeclarationError, match="cannot say Absent"):
        charge.lookup(found)

    with pytest.raises(DeclarationError, match="annotate what it returns"):

        @charge.lookup
        def unsaid(order: Order): ...  # type: ignore[no-untyped-def]  # what is tested

    with pytest.raises(DeclarationError, match="cannot say Absent"):

        @charge.lookup
        def never(order: Order) -> str | Unknown:
            return Unknown()


def _none_for_absent(order: Order) -> str | None: ...


def test_a_call_is_stopped_only_where_that_leaves_no_doubt(bank: ExternalService) -> None:
    async def charge(order: Order) -> str:
        return ""

    with pytest.raises(DeclarationError, match=r"async calls under InDoubt\.repeat\(\)"):
        bank.call(in_doubt=InDoubt.hold(), stop_when_overtaken=True)(charge)
    with pytest.raises(DeclarationError, match=r"async calls under InDoubt\.repeat\(\)"):
        bank.call(in_doubt=InDoubt.repeat(), stop_when_overtaken=True)(_charge)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", 5])
def test_the_name_of_a_call_is_one_that_can_be_read(bank: ExternalService, name: Any) -> None:
    with pytest.raises(DeclarationError, match="give it a name of printable characters"):
        bank.call(in_doubt=InDoubt.hold(), name=name)(_charge)


@pytest.mark.parametrize("names", ["stripe", [""], [5], ["a\nb"]])
def test_outsides_that_a_find_answers_for_are_a_list_of_names(bank: ExternalService, names: Any) -> None:
    with pytest.raises(DeclarationError, match=r"such as answers_for=\['stripe'\]"):
        bank.call(in_doubt=InDoubt.lookup(settle_after=SECOND), answers_for=names)(_charge)


def test_a_call_without_a_find_that_is_asked_answers_for_nobody(app: App, bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.hold(), answers_for=["stripe"])(_charge)
    app.on(Order, Order.status == "placed", call=charge)(_charged)
    with pytest.raises(DeclarationError, match="has no lookup that is asked"):
        app.check_declarations()


# ---- what an overtaken outcome means -------------------------------------------------------------------------------------------
def test_what_an_overtaken_outcome_means_is_one_word_of_three(app: App, bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.hold())(_charge)
    wrong: Any = "again"
    with pytest.raises(DeclarationError, match=r"overtaken='again': give one of 'hold', 'same', 'drop'"):
        app.on(Order, Order.status == "placed", call=charge, overtaken=wrong)(_charged)


def test_what_an_overtaken_outcome_means_is_not_said_without_a_call(app: App) -> None:
    said: dict[str, Any] = {"overtaken": "same"}
    with pytest.raises(DeclarationError, match="there is no call=: leave it out"):
        app.on(Order, Order.status == "placed", **said)(_plain)


def test_what_an_overtaken_outcome_means_is_said_by_a_word_or_by_a_handler_and_not_by_both(app: App, bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.hold())(_charge)
    reaction = app.on(Order, Order.status == "placed", call=charge, overtaken="same")(_charged)
    with pytest.raises(DeclarationError, match=r"says overtaken='same' already.*leave out the one or the other"):
        reaction.overtaken(_charged)
    assert app.reactions["_charged"].overtaken is None


def _plain(order: Order) -> None: ...


def _charged(order: Order, receipt: str) -> None: ...


# ---- W18: what nobody supplies -------------------------------------------------------------------------------------------------
def test_w18_a_handler_with_a_parameter_that_nobody_supplies(app: App) -> None:
    with pytest.raises(DeclarationError, match=r"nobody supplies its parameter 'mailer'.*session: Session, ctx: ReactionContext"):

        @app.on(Order, Order.status == "placed")
        def one(order: Order, mailer: smtplib.SMTP) -> None: ...

    with pytest.raises(DeclarationError, match="nobody supplies its parameter 'key'"):

        @app.on(Order, Order.status == "placed")
        def two(order: Order, key: IdempotencyKey) -> None: ...

    with pytest.raises(DeclarationError, match=r"Annotate it: session: Session"):
        app.on(Order, Order.status == "placed")(lambda_with_session)
    with pytest.raises(DeclarationError, match=r"sqlalchemy.orm.Session: annotate it so"):

        @app.on(Order, Order.status == "placed")
        def three(order: Order, session: sqlmodel.Session) -> None: ...

    wrong: Any = no_arguments
    with pytest.raises(DeclarationError, match="must take the record by position"):
        app.on(Order, Order.status == "placed")(wrong)


def lambda_with_session(order: Order, session) -> None: ...  # type: ignore[no-untyped-def]  # what is tested


def no_arguments() -> None: ...


def test_w18_a_call_has_no_session_and_no_client_that_nobody_gave(bank: ExternalService) -> None:
    with pytest.raises(DeclarationError, match=r"runs outside of any transaction.*`prepare`"):

        @bank.call(in_doubt=InDoubt.hold())
        def one(order: Order, session: Session) -> None: ...

    with pytest.raises(DeclarationError, match="Give the service a client"):

        @bank.call(in_doubt=InDoubt.hold())
        def two(order: Order, client: httpx.Client) -> None: ...


def test_w18_a_handler_of_a_call_takes_the_outcome(app: App, bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.hold())(_charge)
    wrong: Any = _only_order
    with pytest.raises(DeclarationError, match="must take the record and the outcome"):
        app.on(Order, Order.status == "placed", call=charge)(wrong)


def _only_order(order: Order) -> None: ...


def test_functions_of_the_wrong_record(app: App, bank: ExternalService) -> None:
    wrong: Any = _of_item
    with pytest.raises(DeclarationError, match="takes Item, and the reaction is on Order"):
        app.on(Order, Order.status == "placed")(wrong)
    call: Any = bank.call(in_doubt=InDoubt.hold())(_of_item)
    with pytest.raises(DeclarationError, match="takes Item, and the reaction is on Order"):

        @app.on(Order, Order.status == "placed", call=call)
        def done(order: Order, outcome: None) -> None: ...


def _of_item(item: Item) -> None: ...


def test_an_async_handler_is_refused_with_the_cure(app: App) -> None:
    async def paid(order: Order) -> None: ...

    wrong: Any = paid
    with pytest.raises(DeclarationError, match=r"paid is async.*plain `def`"):
        app.on(Order, Order.status == "placed")(wrong)

    @app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None: ...

    async def never(order: Order, failure: Failure) -> None: ...

    ending: Any = never
    with pytest.raises(DeclarationError, match=r"its gave_up handler never is async"):
        packed.gave_up(ending)


def test_generator_functions_are_refused(app: App, bank: ExternalService) -> None:
    def one(order: Order) -> Iterator[None]:
        yield

    async def two(order: Order) -> AsyncIterator[None]:
        yield

    wrong: Any = one
    with pytest.raises(DeclarationError, match="never run: return instead of yield"):
        app.on(Order, Order.status == "placed")(wrong)
    with pytest.raises(DeclarationError, match="never run: return instead of yield"):
        bank.call(in_doubt=InDoubt.hold())(two)


# ---- outcomes ------------------------------------------------------------------------------------------------------------------
class Opaque: ...


@dataclass(frozen=True)
class Receipt:
    id: str


@dataclass(frozen=True)
class Declined:
    id: str


@dataclass(frozen=True)
class Empty: ...


@dataclass(frozen=True)
class Defaulted:
    note: str = ""


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Opaque, "cannot be kept as JSON"),
        (Any, "would come back as a dict"),
        (object, "would come back as a dict"),
        (Receipt | Opaque, "cannot be kept as JSON"),
        (Receipt | Declined, "Receipt that was kept as JSON could come back as Declined"),
        (list[Receipt | Declined], "could come back as"),
        (Empty | Defaulted, "Empty that was kept as JSON could come back as Defaulted"),
        (timedelta | str, "could come back as str"),
        ("NeverDefined", "cannot be found when it is declared"),
    ],
)
def test_hazard_16_an_outcome_that_cannot_go_to_json_and_back(app: App, bank: ExternalService, kind: Any, why: str) -> None:
    def handler(order: Order, outcome: Any) -> None: ...

    handler.__annotations__["outcome"] = kind
    call: Any = bank.call(in_doubt=InDoubt.hold())(_any)
    with pytest.raises(DeclarationError, match=why):
        app.on(Order, Order.status == "placed", call=call)(handler)


class Excluding(BaseModel):
    id: str
    token: str = Field(default="", exclude=True)


@dataclass
class ExcludingByHand:
    id: Annotated[str, Field(exclude=True)]


@pydantic_dataclass
class ExcludingOurs:
    id: str = Field(default="", exclude=True)


class Secretive(BaseModel):
    id: str
    password: SecretStr


class Secret(BaseModel):
    inner: list[Secretive]


class Written(BaseModel):
    password: SecretStr

    @field_serializer("password", when_used="json")
    def _written(self, value: SecretStr) -> str:
        return value.get_secret_value()


@dataclass
class NotRead:
    id: str
    total: int = field(default=0, init=False)


@dataclass
class Computed:
    id: str
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = len(self.id)


@dataclass
class OnlyOnce:
    id: str
    raw: InitVar[str]

    def __post_init__(self, raw: str) -> None: ...


@dataclass
class Defaulting:
    id: str
    raw: InitVar[str] = ""

    def __post_init__(self, raw: str) -> None: ...


class Pair(Enum):
    BOTH = (1, 2)


class Level(IntEnum):
    LOW = 1


class Numbers(RootModel[list[int]]): ...


class Row(NamedTuple):
    password: SecretStr


Named = NewType("Named", Secretive)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Excluding, r"token of an outcome .*left out of the JSON \(exclude=True\). Keep it"),
        (list[Excluding] | None, "left out of the JSON"),
        (ExcludingByHand, "left out of the JSON"),
        (ExcludingOurs, "left out of the JSON"),
        (Secretive, "password of an outcome .* written as asterisks. Give the field a serializer"),
        (Secret, r"inner\.password"),
        (Row, "written as asterisks"),
        (Named, "written as asterisks"),
        (dict[str, SecretBytes], "written as asterisks"),
        (NotRead, r"total of an outcome .*\(init=False\)"),
        (OnlyOnce, r"raw of an outcome .*\(InitVar\)"),
        (Pair, r"\(1, 2\).* does not come back from JSON"),
        (Literal[b"x"], "does not come back from JSON"),
        (dict[Pair, int], "does not come back from JSON"),
        (Iterable[int], "used up when it is written down. Make it a list"),
        (dict[tuple[int, int], str], "keys of type .* cannot be read again"),
        (dict[str | None, int], "keys of type NoneType"),
        (dict[int | str, str], "written as the same texts"),
        (Level | int, "Level that was kept as JSON could come back as int"),
        (int | Level, "Level that was kept as JSON could come back as int"),
        (list[int] | tuple[int, ...], "could come back as"),
        (set[int] | list[int], "could come back as"),
        (Numbers | list[int], "Numbers that was kept as JSON could come back as"),
        (Receipt | dict[str, str], "Receipt that was kept as JSON could come back as"),
    ],
)
def test_hazard_16_what_the_type_of_an_outcome_tells_is_refused(app: App, bank: ExternalService, kind: Any, why: str) -> None:
    def handler(order: Order, outcome: Any) -> None: ...

    handler.__annotations__["outcome"] = kind
    call: Any = bank.call(in_doubt=InDoubt.hold())(_any)
    with pytest.raises(DeclarationError, match=why):
        app.on(Order, Order.status == "placed", call=call)(handler)


@pytest.mark.parametrize(
    "kind",
    [
        Written,
        Computed,
        Defaulting,
        Numbers,
        Annotated[SecretStr, PlainSerializer(SecretStr.get_secret_value)],
        Literal["a", 1] | None,
        dict[Level, Receipt],
        dict[Literal["a", "b"], int],
        int | str | None,
        bool | int | float,
        float | Decimal,
        Receipt | dict[str, int],
        Receipt | list[str] | None,
        NewType("Number", int),
    ],
    ids=lambda kind: str(kind).partition(" at 0x")[0],
)
def test_hazard_16_what_may_come_back_is_taken(app: App, bank: ExternalService, kind: Any) -> None:
    def handler(order: Order, outcome: Any) -> None: ...

    def called(order: Order) -> Any: ...

    handler.__annotations__["outcome"] = called.__annotations__["return"] = kind
    call: Any = bank.call(in_doubt=InDoubt.hold())(called)
    app.on(Order, Order.status == "placed", call=call)(handler)
    assert app.reactions["handler"].outcome_type == kind


@dataclass(frozen=True)
class Detailed(Receipt):
    voucher: str = ""


def test_hazard_16_a_call_that_returns_a_subclass_of_what_its_handler_takes(app: App, bank: ExternalService) -> None:
    @bank.call(in_doubt=InDoubt.hold())
    def charge(order: Order) -> Detailed:
        raise AssertionError

    with pytest.raises(DeclarationError, match="can return Detailed, which would come back as another type"):

        @app.on(Order, Order.status == "placed", call=charge)
        def paid(order: Order, outcome: Receipt) -> None: ...

    @app.on(Order, Order.status == "placed", call=charge)
    def paid_in_detail(order: Order, outcome: Detailed) -> None: ...


def _any(order: Order) -> Any: ...


def test_hazard_16_an_outcome_without_an_annotation(app: App, bank: ExternalService) -> None:
    call: Any = bank.call(in_doubt=InDoubt.hold())(_any)
    with pytest.raises(DeclarationError, match="annotate its second argument"):
        app.on(Order, Order.status == "placed", call=call)(_unannotated)


def _unannotated(order: Order, outcome) -> None: ...  # type: ignore[no-untyped-def]  # what is tested


def test_a_handler_that_is_not_annotated_for_all_that_its_call_returns(app: App, bank: ExternalService) -> None:
    @bank.call(in_doubt=InDoubt.hold())
    def charge(order: Order) -> Receipt | None:
        return None

    call: Any = charge
    with pytest.raises(DeclarationError, match="its call can return NoneType"):

        @app.on(Order, Order.status == "placed", call=call)
        def paid(order: Order, outcome: Receipt) -> None: ...


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (str | Absent, "the lookup of its call can return str"),
        (Detailed | Absent | Unknown, "the lookup of its call can return Detailed, which would come back as another type"),
        (Receipt | Absent | Unknown, None),
        (Receipt | type[Absent] | type[Unknown], None),
        (Absent | Unknown, None),
        (Any, None),
    ],
    ids=["another type", "a subclass", "the outcome", "classes", "no outcome", "anything"],
)
def test_a_find_that_returns_what_the_handler_does_not_take(app: App, bank: ExternalService, found: Any, refused: str | None) -> None:
    def charge(order: Order) -> Receipt:
        raise AssertionError

    def lookup(order: Order) -> Any:
        raise AssertionError

    lookup.__annotations__["return"] = found
    call = bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(minutes=1)))(charge)
    call.lookup(lookup)

    def paid(order: Order, outcome: Receipt) -> None: ...

    declare = app.on(Order, Order.status == "placed", call=call)
    if refused is None:
        declare(paid)
    else:
        with pytest.raises(DeclarationError, match=refused):
            declare(paid)


# ---- options -------------------------------------------------------------------------------------------------------------------
def test_options_that_do_not_go_together(app: App, bank: ExternalService) -> None:
    charge = bank.call(in_doubt=InDoubt.hold())(_charge)
    on: Any = app.on
    with pytest.raises(DeclarationError, match="retry= belongs to its call"):
        on(Order, Order.status == "placed", call=charge, retry=Retry())(_taken)
    with pytest.raises(DeclarationError, match="there is no call="):
        on(Order, Order.status == "placed", prepare=_charge)(_only_order)
    with pytest.raises(DeclarationError, match=r"declare it with @service.call"):
        on(Order, Order.status == "placed", call=_charge)(_taken)
    with pytest.raises(DeclarationError, match=r"got an unexpected keyword argument .facts.: write @app\.on"):
        on(Order, Order.status == "placed", facts=Order.mailed_at)


def _taken(order: Order, outcome: str) -> None: ...


# ---- names ---------------------------------------------------------------------------------------------------------------------
def test_a_reaction_has_a_name_of_its_own(app: App) -> None:
    with pytest.raises(DeclarationError, match=r"name='\.\.\.'"):
        app.on(Order, Order.status == "placed")(_LAMBDA)

    def _(order: Order) -> None: ...

    with pytest.raises(DeclarationError, match=r"name='\.\.\.'"):
        app.on(Order, Order.status == "placed")(_)
    for name in ("", " ", "a\nb", "x" * 201):
        with pytest.raises(DeclarationError, match="1 to 200 printable"):
            app.on(Order, Order.status == "placed", name=name)(_only_order)
    app.on(Order, Order.status == "placed", name="x" * 200)(_LAMBDA)
    with pytest.raises(DeclarationError, match=r"has a reaction 'x+' already"):
        app.on(Order, Order.status == "paid", name="x" * 200)(_only_order)


def test_an_ending_is_declared_once(app: App) -> None:
    @app.on(Order, Order.status == "placed")
    def packed(order: Order) -> None: ...

    @packed.gave_up
    def first(order: Order, failure: Failure) -> None: ...

    with pytest.raises(DeclarationError, match="has a gave_up handler already"):

        @packed.gave_up
        def second(order: Order, failure: Failure) -> None: ...


@pytest.mark.parametrize("name", ["", "a\tb", "x" * 201, None])
def test_an_app_has_a_name(name: Any) -> None:
    with pytest.raises(DeclarationError, match="printable"):
        App(name, Store("sqlite://", Base))


def test_two_living_apps_of_one_name_are_refused() -> None:
    first = App("twice", Store("sqlite://", Base))
    with pytest.raises(DeclarationError, match=r"this process has an App\('twice'\) already, declared at .*test_wrong_functions.py:\d+"):
        App("twice", Store("sqlite://", Base))
    first.reactions["itself"] = first  # type: ignore[assignment]  # a cycle, which reference counts alone do not free
    del first
    App("twice", Store("sqlite://", Base))
    gc.collect()


def test_the_same_place_declared_again_is_a_module_imported_again() -> None:
    kept = [App("again", Store("sqlite://", Base)) for _ in range(2)]
    assert len(kept) == 2


# ---- stores --------------------------------------------------------------------------------------------------------------------
def test_a_class_is_owned_by_one_store() -> None:
    with pytest.raises(DeclarationError, match="two of its stores own the same tables"):
        App("both", Store("sqlite:///a.db", Base), Store("sqlite:///b.db", DataBase, Base.metadata))


def test_a_store_owns_bases() -> None:
    wrong: Any = int
    with pytest.raises(DeclarationError, match="owns no tables"):
        Store("sqlite://")
    with pytest.raises(DeclarationError, match="give declarative bases"):
        Store("sqlite://", wrong)
    with pytest.raises(DeclarationError, match="one mapped class; give its base"):
        Store("sqlite://", Order)
    lossy: Any = "sometimes"
    with pytest.raises(DeclarationError, match="failover='sometimes'"):
        Store("sqlite://", Base, failover=lossy)
    store = Store("sqlite://", Base, MetaData())
    assert store.owns_class(Order)
    assert store.owns_table(Order.__table__)
    assert not store.owns_class(Parcel)
    assert not store.owns_class(int)


def test_an_app_has_stores() -> None:
    with pytest.raises(DeclarationError, match="has no store"):
        App("none")
    wrong: Any = "sqlite://"
    with pytest.raises(DeclarationError, match="give stores"):
        App("none", wrong)


def test_a_database_may_be_told_late(tmp_path: Any) -> None:
    asked: list[str] = []

    def url() -> str:
        asked.append("once")
        return f"sqlite:///{tmp_path}/late.db"

    store = Store(url, Base)
    App("late", store)
    assert asked == []
    assert store.settings().url.database == f"{tmp_path}/late.db"
    assert asked == ["once"]
    engine = create_engine(f"sqlite:///{tmp_path}/engine.db")
    assert Store(engine, Base).settings().url.database == f"{tmp_path}/engine.db"


# ---- the package ---------------------------------------------------------------------------------------------------------------
def test_importing_groundstate_imports_nothing_else() -> None:
    code = "import sys, groundstate; print([one for one in sys.modules if one.startswith(('groundstate.', 'sqlalchemy', 'pydantic'))])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    assert [name for name in groundstate.__all__ if getattr(groundstate, name, None) is None] == []
    assert set(groundstate.__all__) <= set(dir(groundstate))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = groundstate.nothing


# ---- services of one name, and what gave_up takes -----------------------------------------------------------------------------------
def _two_outsides(app: App, **options: Any) -> None:
    @ExternalService("bank", limit=1).call(in_doubt=InDoubt.hold())
    def charge(order: Order) -> str:
        return ""

    @ExternalService("bank", **options).call(in_doubt=InDoubt.hold())
    def refund(order: Order) -> str:
        return ""

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None: ...

    @app.on(Order, Order.status == "returned", call=refund)
    def refunded(order: Order, outcome: str) -> None: ...


@pytest.mark.parametrize("options", [{"limit": 5}, {}, {"limit": 1, "rate": groundstate.Rate(1, SECOND)}], ids=["limit", "none", "rate"])
def test_two_outsides_of_one_name_with_different_limits_are_refused(app: App, options: dict[str, Any]) -> None:
    _two_outsides(app, **options)
    with pytest.raises(DeclarationError, match=r"two services are named 'bank', with .* give each a name of its own"):
        app.check_declarations()


def test_two_outsides_of_one_name_with_the_same_limits_are_one(app: App) -> None:
    _two_outsides(app, limit=1)
    app.check_declarations()


def test_gave_up_takes_a_failure_and_no_exception(app: App) -> None:
    @app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None: ...

    def of_an_exception(order: Order, error: Exception) -> None: ...

    def of_anything(order: Order, error: object) -> None: ...

    wrong: Any = of_an_exception
    with pytest.raises(DeclarationError, match="takes an exception, but it is given a Failure"):
        paid.gave_up(wrong)
    paid.gave_up(of_anything)
