"""Runs one action of a person (retry, settle, forget) on attempts, under the locks of their records.

The record is locked first, and the attempt is read again under this lock. So a worker that runs at the same time either has changed the
attempt before, and the result says so, or reads the attempt as the person left it. If a handler has to run, it runs in this process, in the
same way as in a worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

from sqlalchemy.exc import DBAPIError

from groundstate.engine.handle.apply_outcome import Conclusion, OutcomeToApply, always_one_by_one, outcome_writer_of
from groundstate.engine.rows import attempts, baselines, claim, corrupt_rows, outcome_json, reaction_registry
from groundstate.engine.rows.attempt_log import name_attempt
from groundstate.engine.rows.attempts import Identity
from groundstate.engine.rows.claim import AttemptWithFacts
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.sql import db_errors, related_rows
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.db_errors import RelatedRow
from groundstate.engine.sql.safe_text import describe_exception
from groundstate.engine.sql.transaction import Transaction
from groundstate.engine.watch import unknown_states
from groundstate.rules import attempt as rules
from groundstate.rules import begun_kind
from groundstate.rules.attempt import Attempt, Facts, State, Terms
from groundstate.rules.policy import MARGIN, Retry
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.answers import IdempotencyKey, Occurrence
from groundstate.values.errors import ConflictError, GroundstateError

log = logging.getLogger("groundstate")
PATIENCE_S = 5.0  # seconds for which an action is tried again while a record is locked or the database has a transient error


@dataclass(frozen=True)
class Person:
    """The person who acts (`by` is the name for the log), the database of an app on which the person acts, and the reactions that are
    declared there.

    `incarnation` belongs to no worker here, and has no lock and no row: it only gives access to the app's name, the database,
    and the reaction names that idempotency keys contain.
    """

    incarnation: Incarnation
    queries: Mapping[str, ConditionQuery]
    by: str
    schedules: Mapping[str, ScheduleSpec] = field(default_factory=dict)

    @property
    def app(self) -> str:
        return self.incarnation.app

    @property
    def database(self) -> Database:
        return self.incarnation.database


@dataclass(frozen=True)
class ActionResult:
    """The result of an action on one attempt.

    `became` is 'concluded', 'failed', 'doubt', 'settled', 'deleted', 'held' (again) or 'refused', and `words` explains it.
    """

    reaction: str
    record: str
    occurrence: str
    became: str
    words: str

    @property
    def done(self) -> bool:
        """Return whether the action had the wanted effect: False if the attempt is still held, or the action was refused."""
        return self.became not in ("held", "refused")


Deed = Callable[
    [Transaction, ConditionQuery | None, AttemptWithFacts, Attempt], "rules.Keep | rules.Delete | rules.Refuse | OutcomeToApply"
]


# ---- what the rules say ----------------------------------------------------------------------------------------------------------
def decide_retry(
    person: Person, tx: Transaction, query: ConditionQuery | None, _standing: AttemptWithFacts, attempt: Attempt
) -> rules.Keep | rules.Refuse | OutcomeToApply:
    """Decide what `groundstate retry` does with an attempt. If the attempt has an outcome, give the outcome to the handler again;
    otherwise give the attempt back to the workers. Refuse if that is not possible.
    """
    spec = query.spec if query is not None else person.schedules.get(attempt.reaction)
    if spec is None:
        return rules.Refuse(f"this code does not declare {attempt.reaction}: put its code back, or rename it (`groundstate rename`)")
    decision = rules.apply_retry_command(attempt, spec.terms, tx.now)
    if query is None:
        return rules.Refuse(_NO_CALL) if isinstance(decision, rules.Conclude) else decision
    match decision:
        case rules.Conclude():
            return _load_outcome_to_apply(person, query, attempt)
        case rules.Keep(after):
            # A baseline (a row that was left out) does not block other reactions. Now that it is retried, it must block them.
            after = replace(after, blocks=None if query.spec.done_column else query.spec.table_name)
            return rules.Keep(replace(after, begun_with=None) if attempt.why == reaction_registry.BASELINE else after)
        case rules.Refuse():
            return decision


def _load_outcome_to_apply(person: Person, query: ConditionQuery, attempt: Attempt) -> OutcomeToApply | rules.Refuse:
    kind = query.spec.outcome_type
    written = attempt.outcome if attempt.outcome is not None else "[]"
    first, rest = outcome_json.first_and_rest(written, pen=outcome_writer_of(person.incarnation))
    if outcome_json.is_text_only(first):
        return rules.Refuse("its outcome could be kept as text only, and no handler can be given that: settle it with its outcome by hand")
    try:
        value = outcome_json.load_first_outcome(kind, written)
    except ConflictError as refused:
        return rules.Refuse(f"its outcome does not fit the handler any more ({refused}): settle it with its outcome by hand")
    if query.spec.terms.policy is not None and query.spec.terms.policy.kind == "same_key":
        rest = outcome_json.without_outcome(rest, first, pen=outcome_writer_of(person.incarnation))
    return OutcomeToApply(
        value, _key_of_call(person, attempt), _occurrence_of(query, attempt), restarted=True, written=written, remaining=rest
    )


def _occurrence_of(query: ConditionQuery, attempt: Attempt) -> Occurrence:
    return keys.parse_occurrence(attempt.occurrence, len(query.spec.occurrence))


_NO_CALL = "it is a tick of a schedule, which makes no call, so it has no outcome: `retry` or `forget` it"


def _key_of_call(person: Person, attempt: Attempt) -> IdempotencyKey:
    return keys.call_key(
        attempt.app, person.incarnation.key_names.get(attempt.reaction, attempt.reaction), attempt.record, attempt.occurrence
    )


def decide_absent(
    tx: Transaction, query: ConditionQuery | None, standing: AttemptWithFacts, attempt: Attempt
) -> rules.Keep | rules.Delete | rules.Refuse:
    """Decide what `groundstate settle --absent` does with the attempt, by the rules of rules/attempt.py."""
    return rules.apply_settle_absent_command(attempt, _terms_of(query, attempt), standing.facts, tx.now)


def decide_outcome(
    person: Person, written: str, tx: Transaction, query: ConditionQuery | None, _standing: AttemptWithFacts, attempt: Attempt
) -> rules.Refuse | OutcomeToApply:
    """Decide what `groundstate settle --outcome` does with the attempt, and load the outcome from its JSON text (`written`).

    Raise ConflictError if the text is no JSON of the handler's outcome type, or has parts that the type does not read.
    """
    if attempt.reaction in person.schedules:
        return rules.Refuse(_NO_CALL)
    if query is None:
        return rules.Refuse(f"this code does not declare {attempt.reaction}, so no handler can take an outcome: put its code back first")
    decision = rules.apply_settle_outcome_command(attempt, query.spec.terms, tx.now)
    if isinstance(decision, rules.Refuse):
        return decision
    kind = query.spec.outcome_type
    value = outcome_json.load_if_all_keys_are_read(kind, written)
    if attempt.outcome:
        had = person.incarnation.shorten(attempt.outcome)
        log.warning(
            "%s: the outcomes that it had in hand: %s",
            name_attempt(person.incarnation, attempt),
            had,
            extra={"event": "outcomes_replaced", "reaction": attempt.reaction, "record": attempt.record},
        )
    kept = outcome_json.put_outcome_first(kind, attempt.outcome, value, pen=outcome_writer_of(person.incarnation), given=written)
    return OutcomeToApply(value, _key_of_call(person, attempt), _occurrence_of(query, attempt), restarted=True, written=kept)


def decide_forget(
    person: Person, tx: Transaction, query: ConditionQuery | None, standing: AttemptWithFacts, attempt: Attempt
) -> rules.Delete | rules.Refuse:
    """Decide what `groundstate forget` does with the attempt: delete it, or refuse since that could lead to a second call."""
    if query is None and attempt.reaction not in person.schedules and attempt.state is State.FAILED:
        return rules.Delete()  # the reaction is not declared any more, and a failed attempt has no call that may have been made
    if attempt.blocks_own_reaction and attempt.unsure and standing.condition and not standing.facts.holds:
        return rules.Refuse(
            "its condition holds for another round by now, so forgetting it would be a call beside one that may have been made:"
            " `settle` it first, as absent or with its outcome"
        )
    decision = rules.apply_forget_command(attempt, _terms_of(query, attempt), standing.facts, tx.now)
    if isinstance(decision, rules.Delete) and query is not None and baselines.baselines_still_holding(tx.connection, query, [attempt]):
        then = "be a new call by code that says so" if query.spec.call is not None else "let its handler run by code that says so"
        return rules.Refuse(f"a condition under which it was left holds, so forgetting it would {then}")
    if isinstance(decision, rules.Delete) and attempt.blocks_own_reaction and standing.condition:
        decision = rules.Delete("its condition holds for another round by now, and nothing keeps the reaction from that one any more")
    if isinstance(decision, rules.Delete) and query is None and attempt.reaction not in person.schedules:
        # The reaction is not declared, so nobody knows whether its condition holds. A version that declares the reaction again could repeat
        # a call that was made. So this deletes the accepted condition of the reaction: a person must then accept it again.
        reaction_registry.clear_accepted_condition(tx.connection, attempt.app, attempt.reaction)
        return rules.Delete("code that declares its reaction again asks a person first, before it starts on rows that are there")
    if isinstance(decision, rules.Delete) and attempt.outcome:
        log.warning(
            "%s: forgotten with its outcome: %s",
            name_attempt(person.incarnation, attempt),
            attempt.outcome,
            extra={"event": "forgotten_with_outcome", "reaction": attempt.reaction, "record": attempt.record},
        )
    return decision


def _terms_of(query: ConditionQuery | None, attempt: Attempt) -> Terms:
    """Return the reaction's terms (timeout, policy, retries). If it is not declared, compute the timeout from the times of the attempt."""
    if query is not None:
        return query.spec.terms
    told = attempt.deadline - max(attempt.first_at, attempt.since) - MARGIN
    return Terms(policy=None, retry=Retry(), timeout=max(min(told, LONGEST_TOLD), timedelta()))


LONGEST_TOLD = timedelta(days=1)  # a timeout that is computed from the times of an attempt is at most this long


# ---- running an action under the record's lock------------------------------------------------------------------------------------
def run_action_on_attempts(person: Person, reaction: str, identities: Sequence[Identity], deed: Deed) -> list[ActionResult]:
    """Run the action on all these attempts in one transaction; if the commit fails, in one transaction per attempt. Return one result per
    attempt, in their order.
    """
    query = person.queries.get(reaction)
    try:
        return _run_with_retries(person, query, identities, deed, None)
    except GroundstateError:
        raise
    except Exception as error:  # the commit writes the application's tables, so it may raise anything
        if db_errors.is_no_fault_of_record(error):
            raise ConflictError(f"the database is in trouble, try again in a moment: {describe_exception(error)}") from None
        if len(identities) > 1:
            return [did for one in identities for did in run_action_on_attempts(person, reaction, [one], deed)]
        return _run_with_retries(
            person, query, identities, deed, f"its commit was refused: {person.incarnation.shorten(describe_exception(error))}"
        )


def _run_with_retries(
    person: Person, query: ConditionQuery | None, identities: Sequence[Identity], deed: Deed, refused: str | None
) -> list[ActionResult]:
    """Run the action, and try again for PATIENCE_S seconds while a record is locked or the database has a transient error.

    `refused` is a text on why the commit of an earlier try failed; None at the first try.
    """
    done: dict[Identity, ActionResult] = {}
    end = person.incarnation.clock.monotonic() + PATIENCE_S
    while True:
        late = person.incarnation.clock.monotonic() > end
        left = [one for one in identities if one not in done]
        try:
            done |= corrupt_rows.retry_after_mending(
                person.incarnation, partial(_run_and_ask_in_turn_if_raised, person, query, left, deed, refused)
            )
        except Exception as error:
            if late or not db_errors.is_no_fault_of_record(error):
                raise
        if len(done) == len(identities):
            break
        if late:
            words = "its record is locked by somebody else just now: try again when that transaction has ended"
            done |= {one: ActionResult(*one[1:], "refused", words) for one in identities if one not in done}
            break
        person.incarnation.clock.sleep(0.05)
    return [done[one] for one in identities]


def _run_and_ask_in_turn_if_raised(
    person: Person, query: ConditionQuery | None, identities: Sequence[Identity], deed: Deed, refused: str | None
) -> dict[Identity, ActionResult]:
    did = partial(related_rows.redo_lost_updates, partial(_run_in_transaction, person, query, identities, deed, refused))
    try:
        return did()
    except DBAPIError as error:
        if query is None or query.in_turn or not db_errors.is_caused_by_value(error):
            raise
        query.evaluate_clauses_in_turn(())  # evaluate one clause after another, so that the result says for which records a clause raises
        return did()


def _run_in_transaction(
    person: Person,
    query: ConditionQuery | None,
    identities: Sequence[Identity],
    deed: Deed,
    refused: str | None,
    first: frozenset[RelatedRow],
) -> dict[Identity, ActionResult]:
    with person.incarnation.open_transaction() as tx:
        if query is None:
            return _run_on_undeclared_reaction(tx, identities, deed)
        tx.lock_first(first)
        looked = claim.lock_and_read_attempts(query, tx, identities)
        conclusion = Conclusion(person.incarnation, tx, query, one_by_one=always_one_by_one, refused=refused)
        done = {one: _apply_decision(conclusion, one, standing, deed) for one, standing in looked.standing.items()}
        done |= {
            one: ActionResult(*one[1:], "refused", f"{words}: put the record right first") for one, (_, words) in looked.unreadable.items()
        }
        return _write_changes(tx, done, conclusion.write_attempts)


def _write_changes(tx: Transaction, done: dict[Identity, ActionResult], write: Callable[[], object]) -> dict[Identity, ActionResult]:
    """Call `write`, which writes the changes, and return the results. Attempts whose state this version of groundstate does not know are
    first set to held; the results of these attempts say so.
    """
    taken = unknown_states.hold_unknown_states(tx, [one for one, did in done.items() if did.became != "refused"])
    write()
    words = "its state, which this version does not know, was taken as held: "
    return {one: replace(did, words=f"{words}{did.words}") if one in taken else did for one, did in done.items()}


def _apply_decision(conclusion: Conclusion, identity: Identity, standing: AttemptWithFacts, deed: Deed) -> ActionResult:
    attempt = standing.attempt
    if attempt is None:
        return _result_of_missing_attempt(identity)
    said = partial(ActionResult, *identity[1:])
    match deed(conclusion.tx, conclusion.query, standing, attempt):
        case rules.Refuse(why):
            return said("refused", why)
        case OutcomeToApply() as outcome:
            conclusion.apply_outcome(outcome, _count_other_occurrence_as_present(conclusion.query, standing, attempt), attempt)
            if attempt in conclusion.dropped:
                return said("deleted", "its condition or occurrence no longer holds, and such an outcome is dropped: it is in the log")
            if attempt in conclusion.removed:
                return said("concluded", "its outcome is in the record")
            after = conclusion.saved[-1][1]
            return said("concluded" if outcome.remaining and after.outcome == outcome.remaining else "held", after.why or "")
        case decision:
            conclusion.apply_decision(attempt, decision)
            return said(*_describe_decision(decision))


def _count_other_occurrence_as_present(query: ConditionQuery, standing: AttemptWithFacts, attempt: Attempt) -> AttemptWithFacts:
    """Return `standing` as if the attempt and the record had the same occurrence, if the reaction's `occurrence=` columns have changed
    since the attempt began. Otherwise return `standing` unchanged.

    Occurrences that are made of different columns cannot be compared. The person who settles the attempt says that the outcome belongs to
    the record.
    """
    if not begun_kind.has_other_occurrence_columns(attempt.begun_with, query.spec.occurrence_columns):
        return standing
    return replace(standing, facts=replace(standing.facts, holds=standing.condition))


def _run_on_undeclared_reaction(tx: Transaction, identities: Sequence[Identity], deed: Deed) -> dict[Identity, ActionResult]:
    """Run the action on attempts of a reaction that is not declared here, so that there is no condition to check and no record to lock."""
    done: dict[Identity, ActionResult] = {}
    for identity in identities:
        statement = attempts.select_attempts(*[table.c[name] == value for name, value in zip(_IDENTITY, identity, strict=True)])
        found = attempts.fetch_attempts(tx.connection, attempts.lock_selected_rows(tx.database, statement))
        if not found:
            done[identity] = _result_of_missing_attempt(identity)
            continue
        attempt = found[0]
        decision = deed(tx, None, AttemptWithFacts(attempt, Facts(exists=False, holds=False), None, (), None), attempt)
        if isinstance(decision, rules.Refuse):
            done[identity] = ActionResult(*identity[1:], "refused", decision.why)
            continue
        assert not isinstance(decision, OutcomeToApply)  # noqa: S101  # without code there is no handler to give an outcome to

        def write(decision: rules.Keep | rules.Delete = decision, attempt: Attempt = attempt) -> None:
            if isinstance(decision, rules.Keep):
                attempts.update_attempts(tx.connection, [(attempt, decision.attempt)])
            else:
                attempts.delete_attempts(tx.database, tx.connection, [attempt])

        done |= _write_changes(tx, {identity: ActionResult(*identity[1:], *_describe_decision(decision))}, write)
    return done


_IDENTITY = ("app", "reaction", "record", "occurrence")


def _describe_decision(decision: rules.Keep | rules.Delete) -> tuple[str, str]:
    if isinstance(decision, rules.Delete):
        return "deleted", decision.say or "nothing stands of it any more"
    after = decision.attempt
    words = {
        State.FAILED: "a worker carries it out at once, if its condition still holds",
        State.DOUBT: "a worker settles it by its policy",
        State.HELD: "its outcome is still to be concluded: retry it",
    }
    return ("failed" if after.state is State.FAILED else "doubt" if after.state is State.DOUBT else "settled"), words[after.state]


def _result_of_missing_attempt(identity: Identity) -> ActionResult:
    return ActionResult(*identity[1:], "refused", "it does not stand any more: a worker or another person was there before")
