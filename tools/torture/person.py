"""The person of this shop, a process that ends after one pass: it handles what is held, asks the provider, and settles the attempts.

It follows the rules of the docs: what killed a worker is retried; a call in doubt is looked up under its key at each service at which it
may have been made; an outcome that no handler could take is written into the order, where it is missing, and forgotten. Attempts that are
held for a deleted order are left for the judge to count.
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

from groundstate.app.declared import reactions_of
from groundstate.engine.operate import actions, held
from groundstate.engine.operate.action import ActionResult, Person
from groundstate.engine.operate.held import Held
from groundstate.store import connect
from groundstate.values.errors import ConflictError, GroundstateError, NotFoundError
from tools.torture import shop

log = logging.getLogger("tools.torture")
AT_ONCE = 100  # held attempts per page
SERVICES = {"insured": ("", shop.INSURER), "mailed": ("", shop.POST)}  # the services at which calls of each reaction may have been made
# SQL that writes what the handler would have written, for an outcome that came when the order had moved on, or under other code.
BOOKED = {
    "insured": "UPDATE orders SET insured_term = :occurrence, policy = :outcome WHERE id = :id AND insured_term < :occurrence",
    "labelled": "UPDATE orders SET label = :outcome, status = CASE status WHEN 'packed' THEN 'labelled' ELSE status END"
    " WHERE id = :id AND label IS NULL",
    "mailed": "UPDATE orders SET mailed = :outcome WHERE id = :id AND mailed IS NULL",
    "thanked": "UPDATE orders SET thanked = :outcome WHERE id = :id AND thanked IS NULL",
}
BOOKED["stickered"] = BOOKED["labelled"]


def handle_held_attempts() -> Counter[str]:
    """Handle all held attempts once, and return how often each action was taken."""
    done: Counter[str] = Counter()
    store = shop.app.stores[0]
    database, make_lives, _ = connect.open_store(store.settings())
    try:
        person = actions.build_person(shop.app.name, reactions_of(shop.app, store), database, make_lives(), by="the torture's person")
        page = held.read_held_page(shop.app.name, database, person.queries, limit=AT_ONCE)
        while page.held:
            for one in page.held:
                done[_settle_attempt(person, one)] += 1
            if not page.left or page.more is None:
                break
            page = held.read_held_page(shop.app.name, database, person.queries, after=page.more, limit=AT_ONCE)
    except (DBAPIError, GroundstateError) as error:  # the database is in trouble; the next pass continues
        log.warning("the person was interrupted: %s", error)
        done["interrupted"] += 1
    finally:
        database.close()
    return done


def _settle_attempt(person: Person, one: Held) -> str:
    deed = _choose_action(person, one)
    if deed is None:
        return "left"
    name, act = deed
    try:
        did = act()
    except (ConflictError, NotFoundError):
        return f"{name}: refused"
    return f"{name}: held again" if did.became == "held" else name


def _choose_action(person: Person, one: Held) -> tuple[str, Callable[[], ActionResult]] | None:
    where = (one.reaction, one.record, one.occurrence)
    if "deleted" in one.why:
        return None
    if one.outcome is not None:
        if "retry" in one.can and not one.why.startswith("overtaken"):
            return "retry", partial(actions.retry, person, *where)
        return "forget", partial(_write_outcome_and_forget, person, one)
    if not one.unsure:
        return "retry", partial(actions.retry, person, *where)
    truths = [
        shop.send_request_blocking({"ask": "truth", "key": shop.service_key(service, one.key or "")}) for service in _possible_services(one)
    ]
    ids = [truth["id"] for truth in truths if "id" in truth]
    if ids:
        return "settle --outcome", partial(actions.settle, person, *where, outcome=json.dumps(ids[0]))
    if all("absent" in truth for truth in truths) and "settle --absent" in one.can:
        return "settle --absent", partial(actions.settle_absent, person, *where)
    return None


def _possible_services(one: Held) -> tuple[str, ...]:
    return SERVICES.get(one.reaction, ("",))


def _write_outcome_and_forget(person: Person, one: Held) -> ActionResult:
    """Write the outcome into the order by plain SQL, and forget the attempt, which then is of no use."""
    outcomes: list[Any] = json.loads(one.outcome or "[]")
    if one.reaction in BOOKED and outcomes:
        given = {"id": int(one.record), "outcome": outcomes[0]}
        if ":occurrence" in BOOKED[one.reaction]:
            given["occurrence"] = int(one.occurrence)
        engine = create_engine(shop.app.stores[0].settings().url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text(BOOKED[one.reaction]), given)
    return actions.forget(person, one.reaction, one.record, one.occurrence)
