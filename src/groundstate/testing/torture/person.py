"""The person of this shop, as a process that lives for one round: looks at what is held, asks the provider, and says what became of it.

It goes by the rules of the docs: what a worker died of is retried, a call in doubt is looked up under its key, at each service at which
it may have been made; an outcome that nobody could take is written into the order, where it is not there yet, and forgotten. What is held
for an order that was deleted it leaves, for the judge to count.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from groundstate.engine import held, persons
from groundstate.engine.deeds import Did, Person
from groundstate.engine.held import Held
from groundstate.store import opening
from groundstate.testing.torture import shop
from groundstate.values.errors import Conflict, GroundstateError, NotFound

log = logging.getLogger("groundstate.testing.torture")
AT_ONCE = 100
SERVICES = {"insured": ("", shop.INSURER), "mailed": ("", shop.POST)}  # where the calls of each may have been made
# What a handler would have written, for an outcome that came when the order had moved on, or under other code.
BOOKED = {
    "insured": "UPDATE orders SET insured_term = :occurrence, policy = :outcome WHERE id = :id AND insured_term < :occurrence",
    "labelled": "UPDATE orders SET label = :outcome, status = CASE status WHEN 'packed' THEN 'labelled' ELSE status END"
    " WHERE id = :id AND label IS NULL",
    "mailed": "UPDATE orders SET mailed = :outcome WHERE id = :id AND mailed IS NULL",
    "thanked": "UPDATE orders SET thanked = :outcome WHERE id = :id AND thanked IS NULL",
}
BOOKED["stickered"] = BOOKED["labelled"]


def go_round() -> Counter[str]:
    """Looks at all that is held, once. Returns what was done, by its name."""
    done: Counter[str] = Counter()
    store = shop.app.stores[0]
    database, make_lives, _ = opening.open_store(store.settings())
    try:
        person = persons.person(shop.app.name, shop.app.reactions_of(store), database, make_lives(), by="the torture's person")
        page = held.held(shop.app.name, database, person.questions, limit=AT_ONCE)
        while page.held:
            for one in page.held:
                done[_settle(person, one)] += 1
            if not page.left or page.more is None:
                break
            page = held.held(shop.app.name, database, person.questions, after=page.more, limit=AT_ONCE)
    except (DBAPIError, GroundstateError) as error:  # in trouble just now: the next round goes on
        log.warning("the person was interrupted: %s", error)
        done["interrupted"] += 1
    finally:
        database.close()
    return done


def _settle(person: Person, one: Held) -> str:
    deed = _deed(person, one)
    if deed is None:
        return "left"
    name, act = deed
    try:
        did = act()
    except (Conflict, NotFound):
        return f"{name}: refused"
    return f"{name}: held again" if did.became == "held" else name


def _deed(person: Person, one: Held) -> tuple[str, Callable[[], Did]] | None:
    where = (one.reaction, one.record, one.occurrence)
    if "deleted" in one.why:
        return None
    if one.outcome is not None:
        if "retry" in one.can and not one.why.startswith("overtaken"):
            return "retry", partial(persons.retry, person, *where)
        return "forget", partial(_book_and_forget, person, one)
    if not one.unsure:
        return "retry", partial(persons.retry, person, *where)
    truths = [shop.told_in_thread({"ask": "truth", "key": shop.key_at(service, one.key or "")}) for service in _services(one)]
    ids = [truth["id"] for truth in truths if "id" in truth]
    if ids:
        return "settle --outcome", partial(persons.settle, person, *where, outcome=json.dumps(ids[0]))
    if all("absent" in truth for truth in truths) and "settle --absent" in one.can:
        return "settle --absent", partial(persons.settle_absent, person, *where)
    return None


def _services(one: Held) -> tuple[str, ...]:
    return SERVICES.get(one.reaction, ("",))


def _book_and_forget(person: Person, one: Held) -> Did:
    """The outcome into the order, by plain SQL, and then the attempt is of no use any more."""
    outcomes: list[Any] = json.loads(one.outcome or "[]")
    if one.reaction in BOOKED and outcomes:
        given = {"id": int(one.record), "outcome": outcomes[0]}
        if ":occurrence" in BOOKED[one.reaction]:
            given["occurrence"] = int(one.occurrence)
        engine = create_engine(shop.app.stores[0].settings().url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text(BOOKED[one.reaction]), given)
    return persons.forget(person, one.reaction, one.record, one.occurrence)
