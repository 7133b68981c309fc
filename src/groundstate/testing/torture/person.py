"""The person of this shop, as a process that lives for one round: looks at what is held, asks the provider, and says what became of it.

It goes by the rules of the docs: what a worker died of is retried, a call in doubt is looked up under its key, an outcome whose order
moved on is forgotten. What is held for an order that was deleted it leaves, for the judge to count.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import DBAPIError

from groundstate.engine import held, persons
from groundstate.engine.deeds import Did, Person
from groundstate.engine.held import Held
from groundstate.store import opening
from groundstate.testing.torture import shop
from groundstate.values.errors import Conflict, GroundstateError, NotFound

log = logging.getLogger("groundstate.testing.torture")
AT_ONCE = 100


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
        act()
    except (Conflict, NotFound):
        return f"{name}: refused"
    return name


def _deed(person: Person, one: Held) -> tuple[str, Callable[[], Did]] | None:
    where = (one.reaction, one.record, one.occurrence)
    if "deleted" in one.why:
        return None
    if one.outcome is not None:
        holds = "retry" in one.can and not one.why.startswith("overtaken")
        return ("retry", partial(persons.retry, person, *where)) if holds else ("forget", partial(persons.forget, person, *where))
    if not one.unsure:
        return "retry", partial(persons.retry, person, *where)
    truth = shop.told_in_thread({"ask": "truth", "key": one.key})
    if "id" in truth:
        return "settle --outcome", partial(persons.settle, person, *where, outcome=json.dumps(truth["id"]))
    if "absent" in truth and "settle --absent" in one.can:
        return "settle --absent", partial(persons.settle_absent, person, *where)
    return None
