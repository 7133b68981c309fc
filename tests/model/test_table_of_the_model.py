"""The table of the model and the code's: the same rows, met by the same attempts, with the same columns; in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from groundstate.rules import attempt as rules
from groundstate.rules.attempt import Attempt
from groundstate.rules.poison_suspects import worker_ends_in_why
from groundstate.rules.policy import MARGIN
from tests.model.pml import COLUMNS, MODEL, NOT_MODELLED, ModelRow, ModelTable, NotOfTheTable, as_kept, read
from tests.rules.making import KEPT_FOR, SETTLE_AFTER, TIMEOUT
from tests.rules.table import ADOPTER, NEW_CALL, TABLE, Case, row_of
from tests.rules.test_attempt_machine import MISTAKES
from tests.rules.test_attempt_table import all_cases, happen

POLICIES = {None: 0, "repeat": 1, "same_key": 2, "lookup": 3, "hold": 4}
ALL_EVENTS = frozenset(row.event for row in TABLE)
STATES = ("NONE", "BEGUN", "DOUBT", "FAILED", "HELD")


def too_old(first_at: Any, now: Any) -> bool:
    """The one thing that the model knows of a key's age."""
    return bool(first_at + KEPT_FOR <= now + TIMEOUT + MARGIN + SETTLE_AFTER)


ALIKE: dict[str, Any] = {name: name.lower() for name in STATES}  # what is so in each world, and at the end what is where nothing stands
ALIKE |= {"NOCALL": 0, "REPEAT": 1, "SAMEKEY": 2, "LOOKUP": 3, "HOLD": 4, "NEW_CALL": NEW_CALL}
ALIKE |= {"me": ADOPTER, "given": True, "later": max, "TOGETHER": 0, "true": True, "false": False}
ALIKE |= dict.fromkeys(COLUMNS, 0) | {"A_st": "none", "spent": False, "spent_then": False, "lands_over": True, "asked_late": True}
ALIKE |= {"other_code": False, "other_call": False, "other_lookup": False}


def world_of(case: Case) -> dict[str, Any]:
    """What a guard, or a deed, of the model may ask, by its own words."""
    one = case.attempt
    world = ALIKE | {"POL": POLICIES[case.kind], "HAS_FIND": case.terms.has_lookup, "counts": int(case.counts), "now": case.now}
    world |= {"exists": case.facts.exists, "holds": case.holds, "blocked": case.blocked, "expired": case.facts.expired}
    world |= {"NEW_DEADLINE": case.now + case.terms.timeout}
    if one is not None:
        world |= {"spent": case.spent, "spent_then": case.spent_then}
        world |= {"other_code": case.of_other_code, "other_call": case.other_call, "other_lookup": case.other_lookup}
        world |= {"lands_over": case.now > case.lands_until, "asked_late": case.asked_at > case.lands_until}
        world |= {"A_st": one.state.value, "A_un": int(one.unsure), "A_inc": one.worker, "A_c": one.call, "A_no": one.call_no}
        world |= {"A_fail": one.failures, "A_dl": one.deadline, "A_out": int(one.outcome is not None), "A_tog": one.together}
        world |= {"A_old": too_old(one.first_at, case.now), "A_ends": len(worker_ends_in_why(one.why))}
    return world


def seen(one: Attempt, now: Any) -> dict[str, Any]:
    """An attempt as far as the model has columns for it."""
    found = {name: getattr(one, name) for name in COLUMNS.values()}
    found |= {
        "state": one.state.value,
        "outcome": one.outcome is not None,
        "first_at": too_old(one.first_at, now),
        "why": len(worker_ends_in_why(one.why)),
    }
    return found


def differ_in_a_case(model: ModelTable, event: str, case: Case) -> Iterator[str]:
    """In what the model and the code disagree on this event in this case."""
    row, world = row_of(event, case), world_of(case)
    met = model.met(event, world)
    if row is None:
        if event != "returned":  # which asks no attempt
            yield from (f"{event}: the model meets {other.says!r}, and the contract knows of no such event" for other in met)
        return
    if [other.says for other in met] != [row.says]:
        yield f"{event}: the model meets {[other.says for other in met]}, and the contract {row.says!r}"
        return
    to, after = happen(event, case)
    if to != met[0].to:
        yield f"{row.says}: by the model {met[0].to}, by the code {to}"
    if set(row.changes(case)) != met[0].changes | met[0].not_modelled:
        yield f"{row.says}: the columns that change"
    written = model.written(met[0], world)
    if after is not None:
        yield from differ_in_columns(met[0], case, after, written)
    elif written:
        yield f"{row.says}: the model writes {sorted(written)} of what is gone"


def differ_in_columns(row: ModelRow, case: Case, after: Attempt, written: dict[str, Any]) -> Iterator[str]:
    if set(written) != row.changes:
        yield f"{row.says}: the model writes {sorted(written)} and says {sorted(row.changes)}"
    before, now = seen(case.one, case.now), seen(after, case.now)
    for name in COLUMNS.values():
        if name == "why" and "why" in row.not_modelled:
            continue
        wanted = written.get(name, before[name])
        if now[name] != wanted:
            yield f"{row.says}: {name} is {now[name]} by the code and {wanted} by the model"
    changed = {one.name for one in fields(Attempt) if getattr(after, one.name) != getattr(case.one, one.name)}
    if not changed <= row.changes | row.not_modelled:
        yield f"{row.says}: the code changes {sorted(changed - row.changes - row.not_modelled)}, and the model says nothing of it"


# What a decision of the code is in a model, where it is more than columns.
LEFT_TO_THE_WORLD = {
    "conclude": "CONCLUDE", "conclude, loudly": "CONCLUDE", "overtaken": "OVERTAKEN", "lookup": "ASKED", "begun": "CALLED",
    "gave up": "GIVEN_UP", "gave up, unsure": "GIVEN_UP", "expired": "EXPIRED", "expired, unsure": "EXPIRED",
    "held anew": "HELDNEW", "gone": "wiped", "gone, said": "wiped",
}  # fmt: skip


def differ_in_rows(model: ModelTable) -> Iterator[str]:
    """Rows that are there on one side alone, or say something else."""
    theirs = {(row.event, row.says, row.states, row.to) for row in model.rows}
    ours = {(row.event, row.says, frozenset(state.value if state else "none" for state in row.states), row.to) for row in TABLE}
    yield from (f"only in the model: {row[1]}" for row in theirs - ours)
    yield from (f"not in the model: {row[1]}" for row in ours - theirs)
    for row in model.rows:
        if row.leaves_to_the_world != LEFT_TO_THE_WORLD.get(row.to):
            yield f"{row.says}: becomes {row.to!r}, and leaves {row.leaves_to_the_world} to the world"
        if not row.not_modelled <= NOT_MODELLED:
            yield f"{row.says}: {sorted(row.not_modelled - NOT_MODELLED)} is a column of the model"
    for name, numbers in model.events.items():
        of = {row.event for row in model.rows if row.number in numbers}
        whole = tuple(row.number for row in model.rows if row.event in of)
        if len(of) == 1 and numbers != whole:
            yield f"{name} carries out {numbers}, and the rows of its event are {whole}"
        if len(of) > 1:
            yield f"{name} carries out rows of several events"
    reached = {number for numbers in model.events.values() for number in numbers}
    yield from (f"no event carries out row {row.number}" for row in model.rows if row.number not in reached)


def cases(events: Collection[str]) -> Iterator[tuple[str, Case]]:
    """Each case that rows tell apart, and questions that were asked early and answered late."""
    for event, case in all_cases():
        if event in events:
            yield event, case
            if event == "absent" and case.attempt is not None:
                yield event, replace(case, asked_at=case.attempt.deadline)


def differences(model: ModelTable, events: Collection[str] = ALL_EVENTS) -> Iterator[str]:
    """All in which the model and the code disagree on these events, as it is found."""
    yield from differ_in_rows(model)
    for event, case in cases(events):
        yield from differ_in_a_case(model, event, case)


def test_the_model_and_the_code_have_one_table() -> None:
    assert not list(differences(as_kept()))


def test_each_row_has_a_number_and_a_name_of_its_own() -> None:
    rows = as_kept().rows
    engine = [int(number) for number in re.findall(r"^/\* ENGINE (\d+) ", (MODEL / "table.pml").read_text(), re.MULTILINE)]
    numbers = [row.number for row in rows] + engine
    assert sorted(numbers) == list(range(1, len(TABLE) + len(engine) + 1))  # a number is kept for good: a new row takes the next
    assert len({row.says for row in rows}) == len(rows)


# ---- a comparison that cannot fail proves nothing ---------------------------------------------------------------------------------
def with_hole(name: str) -> ModelTable:
    """The table with a hole of mutations.pml in it, as the preprocessor puts it there."""
    table = (MODEL / "table.pml").read_text()
    block = re.search(rf"^#ifdef {name}\b.*?\n(.*?)^#endif", (MODEL / "mutations.pml").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    for macro, line in re.findall(r"^#define (\w+)\(o\) (.*)$", block[1], re.MULTILINE):
        table, count = re.subn(rf"^#define {macro}\(o\) .*$", f"#define {macro}(o) {line}", table, flags=re.MULTILINE)
        assert count == 1
    return read(table, (MODEL / "events.pml").read_text())


HOLES = re.findall(r"^#ifdef (\w+)", (MODEL / "mutations.pml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", HOLES)
def test_a_hole_in_the_model_is_seen(name: str) -> None:
    kept = {row.number: row for row in as_kept().rows}
    try:
        model = with_hole(name)
        changed = {row.event for row in model.rows if row != kept[row.number]} or {"due", "settle"}  # a hole in what a new call writes
        found = next(differences(model, changed), None)
    except NotOfTheTable:
        return  # it speaks of what no table may ask
    assert found is not None


SLIPS: list[tuple[str, str]] = [
    ("#define do_7(o) A_st[o] = DOUBT; A_un[o] = 1;", "#define do_7(o) A_st[o] = DOUBT;"),
    ("do_8(o) A_st[o] = DOUBT; A_un[o] = 1; A_inc[o] = me; A_fail[o] = A_fail[o] + (A_tog[o] < 2)",
     "do_8(o) A_st[o] = DOUBT; A_un[o] = 1; A_inc[o] = me; A_fail[o] = A_fail[o] + 1"),
    ("(counts && alone(o) && (A_ends[o] >= 2 ||", "(counts && alone(o) && (A_ends[o] >= 1 ||"),
    ("#define killed_alone(o) (counts && alone(o) &&", "#define killed_alone(o) (counts &&"),
    ("#define do_11(o) A_inc[o] = me; deadline_not_before_now(o)", "#define do_11(o) A_inc[o] = me"),
    ("#define do_11(o) A_inc[o] = me;", "#define do_11(o) A_inc[o] = me; A_fail[o] = A_fail[o] + 1;"),
    ("later(NEW_CALL, A_dl[o])", "A_dl[o]"),
    ("#define do_41(o) A_st[o] = HELD; A_un[o] = 1;", "#define do_41(o) A_st[o] = HELD; A_un[o] = 0;"),
    ("| held | failed | state failures why [next_at] [since] */", "| held | doubt | state failures why [next_at] [since] */"),
    ("| doubt | held | state [why] [next_at] */\n#define on_17", "| doubt | held | state unsure [why] [next_at] */\n#define on_17"),
    ("#define on_72(o) (A_st[o] == DOUBT && POL == REPEAT && !other_code(o) && holds(o) && expired(o))",
     "#define on_72(o) (A_st[o] == DOUBT && POL == REPEAT && !other_code(o) && exists(o) && expired(o))"),
    ("#define on_73(o) (A_st[o] == FAILED && holds(o) && expired(o) && !blocked(o))",
     "#define on_73(o) (A_st[o] == FAILED && holds(o) && expired(o) && !spent(o) && !blocked(o))"),
    ("#define do_75(o) A_st[o] = DOUBT; A_fail[o] = A_fail[o] + 1; A_ends[o] = 0", "#define do_75(o) A_st[o] = DOUBT; A_ends[o] = 0"),
    ("#define do_76(o) A_st[o] = FAILED; A_fail[o] = A_fail[o] + 1; A_ends[o] = 0",
     "#define do_76(o) A_st[o] = FAILED; A_fail[o] = A_fail[o] + 1"),
    ("#define in_time(o) (holds(o) && !expired(o))", "#define in_time(o) (holds(o))"),
    ("/* ROW 30 | unknown | Unknown |", "/* ROW 30 | unknown | Nobody knows |"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "slip"), SLIPS, ids=[text[:40] for text, _ in SLIPS])
def test_a_slip_of_the_pen_in_the_model_is_seen(text: str, slip: str) -> None:
    table = (MODEL / "table.pml").read_text()
    assert table.count(text) == 1
    assert next(differences(read(table.replace(text, slip), (MODEL / "events.pml").read_text())), None) is not None


def test_a_row_that_no_event_carries_out_is_seen() -> None:
    events = (MODEL / "events.pml").read_text().replace(" R(55)", "")
    assert next(differences(read((MODEL / "table.pml").read_text(), events)), None) is not None


EVENT_OF = {
    "on_call_not_done": "not done", "on_call_not_sent": "did not go out", "adopt_attempt": "adopted", "hold_refused_outcome": "refused",
    "on_lookup_absent": "absent", "decide_attempt_in_doubt": "settle", "decide_failed_attempt": "due", "decide_late_outcome": "late",
    "apply_retry_command": "retry", "apply_settle_absent_command": "settle as absent", "apply_forget_command": "forget",
}  # fmt: skip


@pytest.mark.parametrize(("function", "mistake"), [(row[2], row[3]) for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_in_the_code_is_seen(function: str, mistake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, function, mistake)
    assert next(differences(as_kept(), {EVENT_OF[function]}), None) is not None


def test_a_row_of_the_contract_that_the_model_has_not_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_kept()
    monkeypatch.setattr("tests.model.test_table_of_the_model.TABLE", [*TABLE, replace(TABLE[0], says="one row more")])
    assert list(differ_in_rows(model)) == ["not in the model: one row more"]
