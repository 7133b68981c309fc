"""Wrong uses of the crash lab. Each line that a type checker must refuse ends with the mark, and no other may be refused."""

from __future__ import annotations

from groundstate import InDoubt
from groundstate.testing import Lab
from tests.typing.models import Mail, Order, Receipt, app, bank, smtp


@bank.call(in_doubt=InDoubt.hold())
async def charge(order: Order) -> Receipt:
    return Receipt(order.status)


@smtp.call(in_doubt=InDoubt.hold())
def send(mail: Mail) -> str:
    return mail.to


def wrong(lab: Lab) -> None:
    lab.fake(charge, "r1")  # refused: the call answers with a Receipt
    lab.fake(charge, lambda order: order.status)  # refused: the same
    lab.fake(send, lambda mail: mail.subjekt)  # refused: a Mail has none
    lab.fake(wrong, "r1")  # refused: no call
    lab.clock.forward(30)  # refused: seconds of what?
    lab.crash_everywhere(app, Order(id=1), budget="all")  # refused: a number
    lab.crash_everywhere(app, Order(id=1), may_fail=[charge])  # refused: names
    lab.crash_everywhere(Order(id=1))  # refused: the app comes first
    Lab(postgres=True)  # refused: a URL
