"""Faults of apps: what users write that type-checks and works in every ordinary test, with what shows it. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from groundstate import InDoubt
from tests.testing import apps
from tests.testing import timed_apps as timed
from tests.testing import user_apps as users
from tests.testing.apps import Case
from tests.testing.engine_faults import CANCELS, LATE, LOST_ANSWERS
from tests.testing.searching import Search, at, both, nothing

NEVER_TAKEN = "never taken"


@dataclass(frozen=True)
class Slip:
    """A sentence that says what is wrong in an app, the app with it and without it, and what shows it."""

    words: str
    wrong: Case
    right: Case
    search: Search
    invariant: str


def _gateway(
    words: str,
    call: users.Call,
    find: users.Find | None,
    in_doubt: InDoubt,
    search: Search,
    invariant: str,
    *,
    rounds: bool = False,
    told_apart: bool = True,
) -> Slip:
    wrong = users.gateway(f"wrong: {words}", call, find, in_doubt, rounds=rounds, told_apart=told_apart)
    rightly = users.right_find if find is not None else None
    right = users.gateway(f"right: {words}", users.right_call, rightly, in_doubt, rounds=rounds)
    return Slip(words, wrong, right, search, invariant)


def _packing(words: str, wrong: Callable[..., None], right: Callable[..., None], search: Search, check: apps.Check | None = None) -> Slip:
    name = "Progress" if check is None else "assertion"
    return Slip(
        words,
        users.packing(f"wrong: {words}", wrong, at_the_end=check),
        users.packing(f"right: {words}", right, at_the_end=check),
        search,
        name,
    )


def _two(words: str, make: Callable[..., Case], search: Search, invariant: str) -> Slip:
    return Slip(words, make(f"wrong: {words}", wrong=True), make(f"right: {words}", wrong=False), search, invariant)


def _played(words: str, wrong: users.Call, right: users.Call, invariant: str) -> Slip:
    """With a plain fake: the lab looks into the call by itself."""
    return Slip(words, users.played(f"wrong: {words}", wrong), users.played(f"right: {words}", right), TIME_OUTS, invariant)


TIME_OUTS = both(LOST_ANSWERS, LATE)
NEXT_ROUND = at("meanwhile", "committed", after_first_call=True)
NEXT_ROUND_LOST = at("meanwhile", "committed", after_first_call=True, beside=["done", "lost"])
DEATHS_AT_COMMITS = at("die", "commit")
NO_KEYS = "InDoubt.same_key() on a provider that keeps no keys"
NO_AGAIN = "InDoubt.repeat() on a call that does harm when it is made twice"

SLIPS = [
    _gateway(
        "a call that takes every exception for NotDone",
        users.call_that_takes_all_for_not_done,
        users.right_find,
        apps.ASK,
        LOST_ANSWERS,
        "StickyDoubt",
    ),
    _played(
        "a plain fake's call that takes a time-out for NotDone",
        users.call_that_takes_a_time_out_for_not_done,
        users.call_that_looks_for_it_itself,
        "StickyDoubt",
    ),
    _played(
        "an async one that takes its client's own time-out for NotDone",
        users.call_that_takes_its_clients_time_out_for_not_done,
        users.right_async_call,
        "StickyDoubt",
    ),
    _played(
        "a plain fake's call that returns a time-out as a refusal",
        users.call_that_takes_a_time_out_for_a_refusal,
        users.right_call,
        "Listed",
    ),
    _gateway(
        "a call that repeats itself after a time-out",
        users.call_that_repeats_itself,
        users.right_find,
        apps.ASK,
        LOST_ANSWERS,
        "AtMostOnce",
    ),
    _gateway("a call that makes a key of its own", users.call_that_makes_its_own_key, None, apps.SAME_KEY, LOST_ANSWERS, "OncePerKey"),
    _gateway(
        "a lookup that answers Absent where it does not know",
        users.right_call,
        users.find_that_knows_nothing,
        apps.ASK,
        LOST_ANSWERS,
        "StickyDoubt",
    ),
    _gateway(
        "a lookup by the record, which finds the charge of another round",
        users.right_call,
        users.find_by_record,
        apps.ASK,
        NEXT_ROUND_LOST,
        "NotLost",
        rounds=True,
    ),
    _gateway(
        "a recurring condition without an occurrence",
        users.right_call,
        None,
        apps.SAME_KEY,
        NEXT_ROUND,
        "NotLost",
        rounds=True,
        told_apart=False,
    ),
    Slip(
        NO_KEYS,
        users.on_a_provider_without_keys(f"wrong: {NO_KEYS}", apps.SAME_KEY),
        users.on_a_provider_without_keys(f"right: {NO_KEYS}", InDoubt.hold()),
        LOST_ANSWERS,
        "OncePerKey",
    ),
    Slip(
        NO_AGAIN,
        users.charged(f"wrong: {NO_AGAIN}", InDoubt.repeat()),
        users.charged(f"right: {NO_AGAIN}", InDoubt.hold()),
        LOST_ANSWERS,
        "assertion",
    ),
    _two("a due time that may be moved, and no word on whether each is a round", timed.moved_while_it_goes_out, CANCELS, "AtMostOnce"),
    _two("an overtaken handler that sets a state over a cancel", users.overtaken_by_the_same_handler, CANCELS, "assertion"),
    _two("a handler that does not look at what was taken", users.edited, CANCELS, "assertion"),
    _packing("a condition that never becomes false", users.counted_only, users.packed, nothing),
    _packing("a handler that sends a mail by itself", users.packed_and_mailed, users.packed, DEATHS_AT_COMMITS, users.one_mail),
    _packing(
        "a handler that counts in memory",
        users.numbered_in_memory,
        users.numbered_by_the_table,
        DEATHS_AT_COMMITS,
        users.numbers_have_no_gap,
    ),
    _packing("a handler that reads Python's clock", users.dated_by_python, users.dated_by_the_moment, nothing, users.dated_today),
    _two("a state that nobody answers", users.in_two_steps, nothing, "assertion"),
    _two("two reactions on one state", users.two_on_one_state, nothing, NEVER_TAKEN),
    _two("a reaction on a state that nobody sets", users.misspelt, nothing, NEVER_TAKEN),
]
