"""A held outcome comes back as what the call returned, or is kept as a text of both that says so; it is never dropped."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from typing import Annotated, Any, NewType
from uuid import UUID, uuid1, uuid4
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    computed_field,
    field_validator,
)
from typing_extensions import TypedDict

from groundstate import ExternalService, InDoubt, ReactionContext
from groundstate.engine.operate import held as listing
from groundstate.engine.operate import plan
from groundstate.engine.rows import outcome_json
from groundstate.engine.rows.incarnation import OUTCOME_LENGTH
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from groundstate.values.errors import ConflictError
from tests.engine.kit import Order, World, until
from tests.engine.operate.test_actions import acting, change, only, retry, settle, stored


class Aliased(BaseModel):
    number: int = Field(alias="orderNumber")
    price: Decimal = Field(validation_alias=AliasChoices("price", "amount"), serialization_alias="cost")


class Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    net: int

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way
    @property
    def gross(self) -> int:
        return self.net * 2


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: str


class Secretive(BaseModel):
    id: str
    _seen: int = PrivateAttr(default=0)


class Payload(BaseModel):
    said: Json[list[int]]


class Numbers(RootModel[list[int]]): ...


class Colour(Enum):
    RED = "red"


class Rights(Flag):
    READ = 1
    WRITE = 2


class Parts(TypedDict):
    id: str


@dataclass(frozen=True)
class Receipt:
    id: str
    total: float | None = None


@dataclass(frozen=True)
class Label:
    id: str
    pdf: bytes


@dataclass(frozen=True)
class Special(Receipt):
    voucher: str = "v1"


@dataclass(slots=True)
class Slotted:
    id: str
    made: str = field(default_factory=lambda: str(uuid4()))


@dataclass
class Doubled:
    net: int
    gross: int = field(init=False)

    def __post_init__(self) -> None:
        self.gross = self.net * 2


@dataclass
class Stamped:
    id: str
    stamp: str = field(init=False)

    def __post_init__(self) -> None:
        self.stamp = str(uuid4())


@dataclass
class Parsed:
    id: str
    raw: InitVar[str | None] = None
    length: int = field(init=False)

    def __post_init__(self, raw: str | None) -> None:
        self.length = len(raw or "")


@dataclass(eq=False)
class Same:
    id: str


class Rounding(BaseModel):
    price: Annotated[float, PlainSerializer(lambda value: round(value, 2))]


class Stripping(BaseModel):
    words: str

    @field_validator("words")
    @classmethod
    def stripped(cls, value: str) -> str:
        return value.strip()


class Shouting:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Text(str):
    __slots__ = ()


class UtcDateTime(datetime): ...


Number = NewType("Number", int)
ZURICH = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Zurich"))


def _with_private() -> Secretive:
    made = Secretive(id="r1")
    made._seen = 5
    return made


SAME: list[tuple[Any, Any]] = [
    (Aliased, Aliased.model_validate({"orderNumber": 1, "amount": "1.50"})),
    (Forbidding, Forbidding(net=2)),
    (Open, Open.model_validate({"id": "r1", "more": {"x": [1]}})),
    (Secretive, Secretive(id="r1")),
    (Payload, Payload.model_validate({"said": "[1, 2]"})),
    (Numbers, Numbers([1, 2])),
    (Receipt, Receipt("r1", math.nan)),
    (Receipt, Receipt("r1", -math.inf)),
    (list[float], [math.inf, math.nan, -0.0, 0.1, 1e300]),
    (float, 5),
    (Slotted, Slotted("r1")),
    (Doubled, Doubled(2)),
    (Same, Same("r1")),
    (Colour | None, Colour.RED),
    (Rights, Rights.READ | Rights.WRITE),
    (int | str, "5"),
    (bool | int, 1),
    (bool | int, True),
    (int | float, 1.0),
    (float | Decimal, Decimal("1.50")),
    (Number, Number(7)),
    (tuple[int, str], (1, "a")),
    (set[str], {"a"}),  # of more, the order is not that of another process
    (dict[int, str], {1: "a"}),
    (dict[UUID, int], {UUID(int=5): 1}),
    (UUID, uuid1()),
    (Decimal, Decimal("1.500")),
    (bytes, b"plain"),
    (bytes, b"\xff\xfe"),
    (bytes | None, b"\xff"),
    (list[bytes], [b"a", b"\xff"]),
    (Label, Label("l1", b"%PDF\xff")),
    (dict[str, str], {outcome_json.BASE64: "as if"}),
    (dict[str, str], {outcome_json.REPR: "as if"}),
    (int, 2**80),
    (timedelta, -timedelta(microseconds=1)),
    (datetime, ZURICH),
    (time, time(1, 2, 3, 4, tzinfo=UTC)),
    (Parts, {"id": "r1"}),
    (str | None, None),
    (str, "a\x00b \u65e5"),
]


@pytest.mark.parametrize(("kind", "value"), [*SAME, (dict[str, Any], {"a": [1, 2.5, None, {"b": True}]})], ids=range(len(SAME) + 1))
def test_an_outcome_comes_back_as_it_was(kind: Any, value: Any) -> None:
    kept = outcome_json.dump_outcomes(kind, [value])
    assert not outcome_json.is_text_only(outcome_json.first_and_rest(kept)[0]), kept
    assert "NaN" not in kept or '"NaN"' in kept
    assert outcome_json.why_not_loadable(kind, kept) is None
    assert (
        repr(outcome_json.load_first_outcome(kind, kept)).partition("tzinfo")[0]
        == repr(value if not (kind is float and type(value) is int) else float(value)).partition("tzinfo")[0]
    )


DIFFERENT: list[tuple[Any, Any]] = [
    (Receipt, Special("r1", 5.0)),
    (Rounding, Rounding(price=10.005)),
    (Stripping, Stripping.model_construct(words=" a ")),
    (Secretive, _with_private()),
    (Stamped, Stamped("r1")),
    (Parsed, Parsed("r1", "raw")),
    (Parts, {"id": "r1", "more": 5}),
    (str, Text("a")),
    (datetime, UtcDateTime(2026, 1, 1, tzinfo=UTC)),
    (int, True),
    (list[int], [True]),
    (list[Any], [datetime(2026, 1, 1, tzinfo=UTC)]),
    (list[Any], [(1, 2)]),
    (dict[str, Any], {"a": Decimal(1)}),
    (dict[float, int], {math.nan: 1}),
    (Decimal, Decimal("NaN")),
    (str, "\ud800"),
    (int, 10**5000),
    (str, 5),
    (Receipt, None),
    (Receipt, Shouting()),
]


@pytest.mark.parametrize(("kind", "value"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_what_does_not_come_back_as_it_was_is_kept_as_a_text_of_both(kind: Any, value: Any) -> None:
    part = outcome_json.outcome_to_kept_form(kind, value)
    assert outcome_json.is_text_only(part), part
    assert part[outcome_json.REPR]
    assert (outcome_json.JSON in part) == (outcome_json.COMES_BACK in part)
    json.dumps(part).encode()
    assert outcome_json.why_not_loadable(kind, json.dumps([part])) is None, "no code can load it, so that it is no fault of the new code"


def test_the_text_of_both_says_what_it_was_and_what_would_come_back() -> None:
    part = outcome_json.outcome_to_kept_form(Receipt, Special("r1", 5.0))
    assert part == {
        outcome_json.REPR: "Special(id='r1', total=5.0, voucher='v1')",
        outcome_json.JSON: {"id": "r1", "total": 5.0},
        outcome_json.COMES_BACK: "Receipt(id='r1', total=5.0)",
    }
    assert "valid number" in outcome_json.outcome_to_kept_form(Receipt, Receipt("r1", "much"))[outcome_json.COMES_BACK]  # type: ignore[arg-type]  # tested


# ---- held, on both stores ----------------------------------------------------------------------------------------------------------
def _annotated(bank: ExternalService, call: Any, kind: Any, policy: Any) -> Any:
    call.__annotations__["return"] = kind
    return bank.call(in_doubt=policy)(call)


def failing(world: World, kind: Any, value: Any, handler: Callable[[Order, Any], None] | None = None) -> None:
    """A call that returned this, of which the handler raises."""
    bank = ExternalService("bank")

    def charge(order: Order) -> Any:
        return value

    def paid(order: Order, outcome: Any) -> None:
        if handler is not None:
            handler(order, outcome)
        raise ValueError("a bug")

    paid.__annotations__["outcome"] = kind
    world.app.on(Order, Order.status == "placed", call=_annotated(bank, charge, kind, InDoubt.hold()))(paid)
    world.orders(1)
    world.settled()
    assert world.states() == ["held"]


def test_an_outcome_by_aliases_is_held_and_comes_back(world: World) -> None:
    value = Aliased.model_validate({"orderNumber": 1, "amount": "1.50"})
    failing(world, Aliased, value)
    assert outcome_json.load_first_outcome(Aliased, world.attempt().outcome or "") == value
    assert "text of both" not in (world.attempt().why or "")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Receipt, Special("r1", 5.0)), (Rounding, Rounding(price=10.005)), (Stamped, Stamped("r1")), (Receipt, Shouting())],
    ids=["a subclass", "a serializer that rounds", "made anew", "no words"],
)
def test_an_outcome_that_would_come_back_as_something_else_is_held_and_its_why_says_so(world: World, kind: Any, value: Any) -> None:
    failing(world, kind, value)
    attempt = world.attempt()
    assert attempt.unsure is False
    assert "a bug" in (attempt.why or "")
    assert "settle it with its outcome by hand" in (attempt.why or "")
    part, rest = outcome_json.first_and_rest(attempt.outcome or "")
    assert rest is None
    assert outcome_json.is_text_only(part)
    assert "retry" not in only(world).can
    assert "settle --outcome" in only(world).can
    with pytest.raises(ConflictError, match="settle it with its outcome by hand"):
        retry(world)
    assert world.attempt() == attempt


def test_a_person_settles_what_was_kept_as_a_text_with_its_outcome_and_the_handler_runs(world: World) -> None:
    broken = [True]

    def handler(order: Order, outcome: Receipt) -> None:
        if not broken[0]:
            order.status, order.receipt = "paid", outcome.id

    failing(world, Receipt, Special("r1"), handler)
    with pytest.raises(ConflictError, match="nothing there reads 'voucher'"):
        settle(world, '{"id": "r1", "voucher": "v1"}')
    assert settle(world, '{"id": "r1"}').became == "held"
    kept = json.loads(world.attempt().outcome or "")
    assert kept[0] == {"id": "r1", "total": None}
    assert outcome_json.is_text_only(kept[1]), "what the call returned was dropped"


def test_what_a_person_gave_is_kept_as_he_gave_it_where_no_json_of_ours_would_come_back(world: World) -> None:
    failing(world, Rounding, Rounding(price=10.005))
    assert settle(world, '{"price": 10.005}').became == "held"
    part, _ = outcome_json.first_and_rest(world.attempt().outcome or "")
    assert part == {"price": 10.005}
    assert "text of both" not in (world.attempt().why or "")


def test_an_outcome_that_came_late_and_would_not_come_back_is_added_as_a_text_and_says_so(world: World) -> None:
    failing(world, Receipt, Receipt("r1"))
    written = outcome_json.append_outcome(Receipt, world.attempt().outcome, Special("r2"))
    why = outcome_json.note_if_only_text_was_kept("it came late", written)
    assert why.startswith("it came late; its outcome does not come back from JSON")
    assert outcome_json.note_if_only_text_was_kept(why, written) == why
    assert len(json.loads(written)) == 2


def test_an_outcome_that_comes_after_its_attempt_is_gone_is_held_as_a_text_too(world: World) -> None:
    arrived: list[int] = []
    gateway = world.gateway()
    bank = ExternalService("bank")

    @bank.call(in_doubt=InDoubt.hold())
    async def charge(order: Order) -> Receipt:
        arrived.append(order.id)
        await gateway.act(order.id)
        return Special("r1")

    @world.app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: Receipt) -> None:
        order.status = "paid"

    gateway.plan(1, "hang")
    world.orders(1)
    life = world.worker()
    until(lambda: gateway.waiting == 1)
    world.set(1, status="cancelled")
    world.force("DELETE FROM groundstate_attempt")
    gateway.gate.set()
    life.quiet()
    attempt = world.attempt()
    assert "came after its attempt was gone; its outcome does not come back" in (attempt.why or "")
    assert outcome_json.is_text_only(json.loads(attempt.outcome or "")[0])


def test_a_handler_that_takes_its_outcome_apart_and_then_fails_leaves_it_as_it_came(world: World) -> None:
    seen: list[Any] = []

    def handler(order: Order, outcome: dict[str, Any]) -> None:
        seen.append(copy.deepcopy(outcome))
        outcome.pop("id")
        outcome["lines"].clear()

    failing(world, dict[str, Any], {"id": "r1", "lines": [1]}, handler)
    assert world.attempt().outcome == '[{"id": "r1", "lines": [1]}]'
    assert len(seen) > 1, "the handler was to run together with others, and then alone"
    assert seen == [{"id": "r1", "lines": [1]}] * len(seen)


def test_a_long_text_is_shortened_and_redacted(world: World) -> None:
    failing(world, str, "r1")
    with acting(world) as person:
        person.incarnation.redact = lambda words: words.replace("secret", "...")
        said = person.incarnation.shorten_outcome("secret" + "x" * 30_000)
    assert said.startswith("...xxx")
    assert len(said) == OUTCOME_LENGTH


def test_a_letter_that_the_databases_encoding_lacks_is_written_by_its_number() -> None:
    pen = outcome_json.Pen(codec="latin-1")
    assert outcome_json.append_outcome(str, None, "\u65e5", pen=pen) == '["\\u65e5"]'
    assert outcome_json.append_outcome(str, None, "\u00e9", pen=pen) == '["\u00e9"]'


# ---- loaded with other code ----------------------------------------------------------------------------------------------------------
class Renamed(BaseModel):
    id: str
    reference: str = ""


class Carried(BaseModel):
    id: str
    reference: str = Field(default="", validation_alias=AliasChoices("reference", "ref"))


@pytest.mark.parametrize(
    ("kind", "written", "why"),
    [
        (Renamed, '[{"id": "r1", "ref": "x"}]', "nothing there reads 'ref'"),
        (list[Renamed], '[[{"id": "r1", "ref": "x"}]]', "nothing there reads '0.ref'"),
        (Renamed, '[{"id": "r1", "ref": null}]', None),
        (Carried, '[{"id": "r1", "ref": "x"}]', None),
        (Carried, '[{"id": "r1", "reference": ""}]', None),
        (Aliased, '[{"number": 1, "price": "2"}]', None),
        (Forbidding, '[{"net": 1}]', None),
        (Renamed, '[{"id": "r1"}, {"reference": "x"}]', "Field required at id"),
        (Renamed, '["r1"]', "no outcome of type Renamed"),
        (Renamed, "rubbish", None),
        (set[str], '[["b", "a"]]', None),
    ],
)
def test_of_what_is_held_it_is_told_what_this_code_cannot_read(kind: Any, written: str, why: str | None) -> None:
    said = outcome_json.why_not_loadable(kind, written)
    assert said is None if why is None else why in (said or "")


def _reacting(world: World, kind: Any) -> None:
    bank = ExternalService("bank")

    def charge(order: Order) -> Any:
        raise AssertionError("nothing here is a new call")

    def paid(order: Order, outcome: Any, ctx: ReactionContext) -> None:
        order.status = "paid"

    paid.__annotations__["outcome"] = kind
    world.app.on(Order, Order.status == "placed", call=_annotated(bank, charge, kind, InDoubt.repeat()))(paid)


def _planned(world: World) -> plan.Plan:
    database, _, _ = connect.open_store(world.app.stores[0].settings())
    try:
        database.connect()
        return plan.build_plan("shop", database, [ConditionQuery(spec, database) for spec in world.app.reactions.values()], [])
    finally:
        database.close()


def test_plan_names_each_held_outcome_that_the_new_code_cannot_load_and_retry_refuses_it(world: World) -> None:
    _reacting(world, Renamed)
    world.orders(1)
    stored(world, outcome='[{"id": "r1", "ref": "x"}]')
    [planned] = _planned(world).reactions
    [one] = planned.not_loaded
    assert (one.record, one.occurrence) == ("1", "")
    assert "nothing there reads 'ref'" in one.why
    assert _planned(world).needs_person
    with pytest.raises(ConflictError, match=r"nothing there reads 'ref'.*settle it with its outcome by hand"):
        retry(world)
    change(world, outcome='[{"id": "r1"}]')
    assert _planned(world).reactions[0].not_loaded == ()
    assert retry(world).became == "concluded"


def test_plan_reads_every_page_of_what_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundstate.engine.operate.unloadable_outcomes.AT_ONCE", 2)
    _reacting(world, Receipt)
    world.orders(5)
    for number in range(1, 6):
        stored(world, record=str(number), outcome='["no receipt"]' if number != 3 else '[{"id": "r3"}]')
    [planned] = _planned(world).reactions
    assert [one.record for one in planned.not_loaded] == ["1", "2", "4", "5"]


def test_plan_says_nothing_of_what_no_code_could_load(world: World) -> None:
    _reacting(world, Receipt)
    world.orders(1)
    stored(world, outcome=json.dumps([{outcome_json.REPR: "something"}]))
    assert _planned(world).reactions[0].not_loaded == ()


def test_where_new_code_makes_no_call_its_held_outcomes_are_named(world: World) -> None:
    @world.app.on(Order, Order.status == "placed")
    def paid(order: Order) -> None:
        order.status = "paid"

    world.orders(1)
    stored(world, outcome='["r1"]')
    assert "makes no call here" in _planned(world).reactions[0].not_loaded[0].why


def test_held_lists_retry_where_the_outcome_can_be_given_to_the_handler(world: World) -> None:
    _reacting(world, Receipt)
    world.orders(1)
    stored(world, outcome='[{"id": "r1"}]')
    with acting(world) as person:
        assert "retry" in listing.read_held_page(person.app, person.database, person.queries).held[0].can
