"""One deed of a person's, on attempts under their records' locks: what the rules say to it, and its carrying out.

The record is locked first and the attempt read again under that lock: a worker that runs at the same time either was there before, and
the person is told so, or sees what the person did. A handler runs in this process, by the same conclude.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

from sqlalchemy.exc import DBAPIError

from groundstate.engine import attempts, baselines, beside, claim, illegible, outcomes, registry, trouble, unknown_states
from groundstate.engine.attempt_log import of_attempt
from groundstate.engine.attempts import Identity
from groundstate.engine.claim import Standing
from groundstate.engine.guarded import describe
from groundstate.engine.in_hand import Conclusion, InHand, everyone, pen_of
from groundstate.engine.life import Life
from groundstate.engine.question import Question
from groundstate.engine.transaction import Transaction
from groundstate.engine.trouble import Row
from groundstate.rules import attempt as rules
from groundstate.rules import kind
from groundstate.rules.attempt import Attempt, Facts, State, Terms
from groundstate.rules.policy import MARGIN, Retry
from groundstate.rules.schedule import ScheduleSpec
from groundstate.store.port import Database
from groundstate.store.tables import attempt as table
from groundstate.values import keys
from groundstate.values.answers import Key, Occurrence
from groundstate.values.errors import Conflict, GroundstateError

log = logging.getLogger("groundstate")
PATIENCE_S = 5.0  # how long a record that somebody has locked, or a database in trouble, is waited for


@dataclass(frozen=True)
class Person:
    """Who acts, and on what: one store of an app, with the reactions that this code declares there.

    life: of no worker. It has no lock and no row; it carries the app's name, the database, and the names that keys are made of.
    """

    life: Life
    questions: Mapping[str, Question]
    by: str
    schedules: Mapping[str, ScheduleSpec] = field(default_factory=dict)

    @property
    def app(self) -> str:
        return self.life.app

    @property
    def database(self) -> Database:
        return self.life.database


@dataclass(frozen=True)
class Did:
    """What became of one attempt. `became`: concluded, failed, doubt, settled, deleted; held (again), or refused; `words` say the rest."""

    reaction: str
    record: str
    occurrence: str
    became: str
    words: str

    @property
    def done(self) -> bool:
        """Whether what the person wanted was done: an attempt that is still held, or a refusal, is not."""
        return self.became not in ("held", "refused")


Deed = Callable[[Transaction, Question | None, Standing, Attempt], "rules.Keep | rules.Delete | rules.Refuse | InHand"]


# ---- what the rules say ----------------------------------------------------------------------------------------------------------
def retry(
    person: Person, tx: Transaction, question: Question | None, _standing: Standing, attempt: Attempt
) -> rules.Keep | rules.Refuse | InHand:
    """`groundstate retry`: an outcome in hand is concluded again, and everything else is given back to the workers."""
    spec = question.spec if question is not None else person.schedules.get(attempt.reaction)
    if spec is None:
        return rules.Refuse(f"this code does not declare {attempt.reaction}: put its code back, or rename it (`groundstate rename`)")
    decision = rules.person_retry(attempt, spec.terms, tx.now)
    if question is None:
        return rules.Refuse(_NO_CALL) if isinstance(decision, rules.Conclude) else decision
    match decision:
        case rules.Conclude():
            return _in_hand_again(person, question, attempt)
        case rules.Keep(after):
            # What was left out as baseline keeps nobody off its record, and is of no call; from now on it must keep them off.
            after = replace(after, blocks=None if question.spec.fact else question.spec.table_name)
            return rules.Keep(replace(after, begun_with=None) if attempt.why == registry.BASELINE else after)
        case rules.Refuse():
            return decision


def _in_hand_again(person: Person, question: Question, attempt: Attempt) -> InHand | rules.Refuse:
    kind = question.spec.outcome_type
    written = attempt.outcome if attempt.outcome is not None else "[]"
    first, rest = outcomes.first_and_rest(written, pen=pen_of(person.life))
    if outcomes.is_text_only(first):
        return rules.Refuse("its outcome could be kept as text only, and no handler can be given that: settle it with its outcome by hand")
    try:
        value = outcomes.load_first(kind, written)
    except Conflict as refused:
        return rules.Refuse(f"its outcome does not fit the handler any more ({refused}): settle it with its outcome by hand")
    if question.spec.terms.policy is not None and question.spec.terms.policy.kind == "same_key":
        rest = outcomes.without(rest, first, pen=pen_of(person.life))
    return InHand(value, _key(person, attempt), _occurrence(question, attempt), restarted=True, written=written, remaining=rest)


def _occurrence(question: Question, attempt: Attempt) -> Occurrence:
    return keys.occurrence_of(attempt.occurrence, len(question.spec.occurrence))


_NO_CALL = "it is a tick of a schedule, which makes no call, so it has no outcome: `retry` or `forget` it"


def _key(person: Person, attempt: Attempt) -> Key:
    return keys.call_key(attempt.app, person.life.key_names.get(attempt.reaction, attempt.reaction), attempt.record, attempt.occurrence)


def absent(tx: Transaction, question: Question | None, standing: Standing, attempt: Attempt) -> rules.Keep | rules.Delete | rules.Refuse:
    """`groundstate settle --absent`."""
    return rules.person_absent(attempt, _terms(question, attempt), standing.facts, tx.now)


def outcome(  # a deed, and whose, with what
    person: Person, written: str, tx: Transaction, question: Question | None, _standing: Standing, attempt: Attempt
) -> rules.Refuse | InHand:
    """`groundstate settle --outcome`. Raises Conflict where it is no JSON of the handler's type, or says what nothing there reads."""
    if attempt.reaction in person.schedules:
        return rules.Refuse(_NO_CALL)
    if question is None:
        return rules.Refuse(f"this code does not declare {attempt.reaction}, so no handler can take an outcome: put its code back first")
    decision = rules.person_outcome(attempt, question.spec.terms, tx.now)
    if isinstance(decision, rules.Refuse):
        return decision
    kind = question.spec.outcome_type
    value = outcomes.load_all(kind, written)
    if attempt.outcome:
        had = person.life.shorten(attempt.outcome)
        log.warning(
            "%s: the outcomes that it had in hand: %s",
            of_attempt(person.life, attempt),
            had,
            extra={"event": "outcomes_replaced", "reaction": attempt.reaction, "record": attempt.record},
        )
    kept = outcomes.before(kind, attempt.outcome, value, pen=pen_of(person.life), given=written)
    return InHand(value, _key(person, attempt), _occurrence(question, attempt), restarted=True, written=kept)


def forget(person: Person, tx: Transaction, question: Question | None, standing: Standing, attempt: Attempt) -> rules.Delete | rules.Refuse:
    """`groundstate forget`."""
    if question is None and attempt.reaction not in person.schedules and attempt.state is State.FAILED:
        return rules.Delete()  # no code could ever carry it out, and no call of it was made
    if attempt.keeps_own_reaction and attempt.unsure and standing.condition and not standing.facts.holds:
        return rules.Refuse(
            "its condition holds for another round by now, so forgetting it would be a call beside one that may have been made:"
            " `settle` it first, as absent or with its outcome"
        )
    decision = rules.person_forget(attempt, _terms(question, attempt), standing.facts, tx.now)
    if isinstance(decision, rules.Delete) and question is not None and baselines.still_left(tx.connection, question, [attempt]):
        return rules.Refuse("a condition under which it was left holds, so forgetting it would be a new call by code that says so")
    if isinstance(decision, rules.Delete) and attempt.keeps_own_reaction and standing.condition:
        decision = rules.Delete("its condition holds for another round by now, and nothing keeps the reaction from that one any more")
    if isinstance(decision, rules.Delete) and question is None and attempt.reaction not in person.schedules:
        # Nobody can say here whether its condition holds. Code that declares it again would carry the row out, and call once more what was
        # called, were it not to ask first.
        registry.accept_no_more(tx.connection, attempt.app, attempt.reaction)
        return rules.Delete("code that declares its reaction again asks a person first, before it starts on rows that are there")
    if isinstance(decision, rules.Delete) and attempt.outcome:
        log.warning(
            "%s: forgotten with its outcome: %s",
            of_attempt(person.life, attempt),
            attempt.outcome,
            extra={"event": "forgotten_with_outcome", "reaction": attempt.reaction, "record": attempt.record},
        )
    return decision


def _terms(question: Question | None, attempt: Attempt) -> Terms:
    """Without the code that declared it, its call is taken to have had as long as the attempt itself tells."""
    if question is not None:
        return question.spec.terms
    told = attempt.deadline - max(attempt.first_at, attempt.since) - MARGIN
    return Terms(policy=None, retry=Retry(), timeout=max(min(told, LONGEST_TOLD), timedelta()))


LONGEST_TOLD = timedelta(days=1)


# ---- carried out, under the record's lock --------------------------------------------------------------------------------------
def act(person: Person, reaction: str, identities: Sequence[Identity], deed: Deed) -> list[Did]:
    """All in one transaction; where its commit is refused, a transaction each."""
    question = person.questions.get(reaction)
    try:
        return _patiently(person, question, identities, deed, None)
    except GroundstateError:
        raise
    except Exception as error:  # whatever a commit of the user's own tables may raise
        if trouble.transient(error):
            raise Conflict(f"the database is in trouble, try again in a moment: {describe(error)}") from None
        if len(identities) > 1:
            return [did for one in identities for did in act(person, reaction, [one], deed)]
        return _patiently(person, question, identities, deed, f"its commit was refused: {person.life.shorten(describe(error))}")


def _patiently(person: Person, question: Question | None, identities: Sequence[Identity], deed: Deed, refused: str | None) -> list[Did]:
    """Waits for records that somebody else has locked, and for a database in trouble, as long as a person does."""
    done: dict[Identity, Did] = {}
    end = time.monotonic() + PATIENCE_S
    while True:
        late = time.monotonic() > end
        left = [one for one in identities if one not in done]
        try:
            done |= illegible.mending(person.life, partial(_in_one, person, question, left, deed, refused))
        except Exception as error:
            if late or not trouble.transient(error):
                raise
        if len(done) == len(identities):
            break
        if late:
            words = "its record is locked by somebody else just now: try again when that transaction has ended"
            done |= {one: Did(*one[1:], "refused", words) for one in identities if one not in done}
            break
        time.sleep(0.05)
    return [done[one] for one in identities]


def _in_one(
    person: Person, question: Question | None, identities: Sequence[Identity], deed: Deed, refused: str | None
) -> dict[Identity, Did]:
    did = partial(beside.redo_lost_updates, partial(_in_one_transaction, person, question, identities, deed, refused))
    try:
        return did()
    except DBAPIError as error:
        if question is None or question.in_turn or not trouble.of_a_value(error):
            raise
        question.ask_in_turn(())  # so that it is told for which of them the condition raises
        return did()


def _in_one_transaction(
    person: Person,
    question: Question | None,
    identities: Sequence[Identity],
    deed: Deed,
    refused: str | None,
    first: frozenset[Row],
) -> dict[Identity, Did]:
    with person.life.transaction() as tx:
        if question is None:
            return _without_code(tx, identities, deed)
        tx.lock_first(first)
        looked = claim.look(question, tx, identities)
        conclusion = Conclusion(person.life, tx, question, one_by_one=everyone, refused=refused)
        done = {one: _put(conclusion, one, standing, deed) for one, standing in looked.standing.items()}
        done |= {one: Did(*one[1:], "refused", f"{words}: put the record right first") for one, (_, words) in looked.unreadable.items()}
        return _written(tx, done, conclusion.write)


def _written(tx: Transaction, done: dict[Identity, Did], write: Callable[[], object]) -> dict[Identity, Did]:
    """What became of them, written down; of a state that is none a person hears that it was taken as held."""
    taken = unknown_states.take_as_held(tx, [one for one, did in done.items() if did.became != "refused"])
    write()
    words = "its state, which this version does not know, was taken as held: "
    return {one: replace(did, words=f"{words}{did.words}") if one in taken else did for one, did in done.items()}


def _put(conclusion: Conclusion, identity: Identity, standing: Standing, deed: Deed) -> Did:
    attempt = standing.attempt
    if attempt is None:
        return _gone(identity)
    said = partial(Did, *identity[1:])
    match deed(conclusion.tx, conclusion.question, standing, attempt):
        case rules.Refuse(why):
            return said("refused", why)
        case InHand() as given:
            conclusion.outcome(given, _as_a_person_takes_it(conclusion.question, standing, attempt), attempt)
            if attempt in conclusion.dropped:
                return said("deleted", "its condition or occurrence no longer holds, and such an outcome is dropped: it is in the log")
            if attempt in conclusion.removed:
                return said("concluded", "its outcome is in the record")
            after = conclusion.saved[-1][1]
            return said("concluded" if given.remaining and after.outcome == given.remaining else "held", after.why or "")
        case decision:
            conclusion.apply(attempt, decision)
            return said(*_became(decision))


def _as_a_person_takes_it(question: Question, standing: Standing, attempt: Attempt) -> Standing:
    """Where the occurrence was made of other columns then, its text tells nothing of today's: a person says that it is of the record."""
    if not kind.is_of_other_rounds(attempt.begun_with, question.spec.occurrence_columns):
        return standing
    return replace(standing, facts=replace(standing.facts, holds=standing.condition))


def _without_code(tx: Transaction, identities: Sequence[Identity], deed: Deed) -> dict[Identity, Did]:
    """Attempts of a reaction that this code does not declare: there is no condition, and no record that we could lock."""
    done: dict[Identity, Did] = {}
    for identity in identities:
        statement = attempts.rows(*[table.c[name] == value for name, value in zip(_IDENTITY, identity, strict=True)])
        found = attempts.fetch(tx.connection, attempts.locked(tx.database, statement))
        if not found:
            done[identity] = _gone(identity)
            continue
        attempt = found[0]
        decision = deed(tx, None, Standing(attempt, Facts(exists=False, holds=False), None, (), None), attempt)
        if isinstance(decision, rules.Refuse):
            done[identity] = Did(*identity[1:], "refused", decision.why)
            continue
        assert not isinstance(decision, InHand)  # noqa: S101  # of no handler

        def write(decision: rules.Keep | rules.Delete = decision, attempt: Attempt = attempt) -> None:
            if isinstance(decision, rules.Keep):
                attempts.save(tx.connection, [(attempt, decision.attempt)])
            else:
                attempts.remove(tx.database, tx.connection, [attempt])

        done |= _written(tx, {identity: Did(*identity[1:], *_became(decision))}, write)
    return done


_IDENTITY = ("app", "reaction", "record", "occurrence")


def _became(decision: rules.Keep | rules.Delete) -> tuple[str, str]:
    if isinstance(decision, rules.Delete):
        return "deleted", decision.say or "nothing stands of it any more"
    after = decision.attempt
    words = {
        State.FAILED: "a worker carries it out at once, if its condition still holds",
        State.DOUBT: "a worker settles it by its policy",
        State.HELD: "its outcome is still to be concluded: retry it",
    }
    return ("failed" if after.state is State.FAILED else "doubt" if after.state is State.DOUBT else "settled"), words[after.state]


def _gone(identity: Identity) -> Did:
    return Did(*identity[1:], "refused", "it does not stand any more: a worker or another person was there before")
