"""Wrong reactions. Each line that a type checker must refuse ends with the mark, and no other may be refused."""

from __future__ import annotations

from groundstate import Failure, InDoubt, ReactionContext, Retry, Store, every_child
from tests.typing.models import Base, Declined, Hero, Item, Mail, Order, Receipt, app, bank, smtp


@bank.call(in_doubt=InDoubt.hold())
def charge(order: Order) -> Receipt | Declined:
    return Receipt("")


@smtp.call(in_doubt=InDoubt.hold())
def send(mail: Mail) -> str:
    return mail.to


@app.on(Order, Order.status == "placed")  # refused: a handler is no coroutine
async def awaits(order: Order) -> None: ...


@app.on(Order, Order.status == "placed")  # refused: it returns something, and nobody looks at it
def returns(order: Order) -> bool:
    return True


@app.on(Order, Order.status == "placed")  # refused: another record
def of_item(item: Item) -> None: ...


@app.on(Order, Order.status == "placed", call=charge)  # refused: the outcome can be Declined
def half(order: Order, outcome: Receipt) -> None: ...


@app.on(Item, Item.packed.is_(True), call=charge)  # refused: the call takes an Order
def of_order(item: Item, outcome: Receipt | Declined) -> None: ...


@app.on(Order, Order.status == "placed", call=send)  # refused: the call takes a Mail: `prepare`
def unsent(order: Order, outcome: str) -> None: ...


def mail_of_item(item: Item) -> Mail:
    return Mail("")


def text_of(order: Order) -> str:
    return order.status


@app.on(Order, Order.status == "placed", call=send, prepare=mail_of_item)  # refused: sends takes an Item
def sends_of_item(order: Order, outcome: str) -> None: ...


@app.on(Order, Order.status == "placed", call=send, prepare=text_of)  # refused: sends makes no Mail
def sends_text(order: Order, outcome: str) -> None: ...


@app.on(Order, Order.mailed_at is None)  # refused: Python's bool
def never(order: Order) -> None: ...


@app.on(Order, Order.status)  # refused: a text is no condition
def no_condition(order: Order) -> None: ...


@app.on(Hero, Hero.state == "lost")  # refused: SQLModel's == is typed as bool: col(Hero.state)
def lost(hero: Hero) -> None: ...


@app.on(Order, Order.status == "placed", done_column="mailed_at")  # refused: a column
def by_name(order: Order) -> None: ...


@app.on(Order, Order.status == "placed", call=charge, retry=Retry())  # refused: it belongs to the call
def retried(order: Order, outcome: Receipt | Declined) -> None: ...


@app.on(Order, Order.status == "placed", call=charge, overtaken="repeat")  # refused: hold, same or drop
def overtaken_by_word(order: Order, outcome: Receipt | Declined) -> None: ...


@app.on(Order, Order.status == "packed", overtaken="same")  # refused: there is no outcome without a call
def overtaken_alone(order: Order) -> None: ...


every_child(Order.items, Item.packed is True)  # refused: Python's bool
Store(Base)  # refused: which database?
Store("sqlite://", Base, failover="maybe")  # refused: lossy or lossless
Store.shards({1: "sqlite:///one.db"}, Base)  # refused: a shard's name is text


@app.on(Order, Order.status == "placed")
def packed(order: Order) -> None: ...


@app.on(Order, Order.status == "placed", call=charge)
def paid(order: Order, outcome: Receipt | Declined, ctx: ReactionContext) -> None: ...


@packed.gave_up  # refused: it is told the failure
def gave_up_alone(order: Order) -> None: ...


@paid.overtaken  # refused: the outcome can be Declined
def overtaken_half(order: Order, outcome: Receipt) -> None: ...


@paid.gave_up  # refused: no coroutine
async def gave_up_awaits(order: Order, failure: Failure) -> None: ...


ending = packed.overtaken  # refused: there is no outcome without a call


def unit_test(order: Order, item: Item) -> None:
    packed(item)  # refused: another record
    paid(order, "receipt")  # refused: no outcome of its call


@app.on(Order, Order.status == "a part without a call", per=Order.status)  # refused: a part of no outside
def apart(order: Order) -> None: ...


@app.on(Order, Order.status == "in a line", in_order=Order.status)  # refused: InOrder(Order.status)
def lined(order: Order) -> None: ...


@app.every("0 7 * * *", missed="some")  # refused: none, latest or all
def some() -> None: ...


@app.every(3600)  # refused: a cron expression or a timedelta
def hourly() -> None: ...


@app.every("0 7 * * *")  # refused: a handler is no coroutine
async def later() -> None: ...
