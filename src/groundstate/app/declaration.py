"""Checks what was given to `App.on` and to the handler, and makes a ReactionSpec of it. Refuses what would lose or repeat an effect."""

from __future__ import annotations

import inspect as inspecting
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy.orm import InstrumentedAttribute, Mapper

from groundstate.app import (
    children,
    handler_writes,
    loader_options,
    outcome_types,
    signature,
    source_lint,
    validate_condition,
    validate_ordering,
)
from groundstate.app import validate_due as timing
from groundstate.app.external_service import Call
from groundstate.app.reaction import IN_TRANSACTION, read_handler
from groundstate.app.store import Store
from groundstate.rules import bound_values, condition_coverage, condition_lint, overtaken, sqlite_pitfalls
from groundstate.rules.due import Due, DueSpec
from groundstate.rules.overtaken import WhenOvertaken
from groundstate.rules.policy import Retry
from groundstate.rules.specs import CallSpec, Function, ReactionSpec
from groundstate.values import keys
from groundstate.values.errors import DeclarationError, DeclarationWarning

LONGEST_NAME = 200


@dataclass(frozen=True)
class Given:
    """The options of `App.on`, without the record and its clauses."""

    call: Call[Any, Any] | None = None
    prepare: Any = None
    due: Any = None
    occurrence: Sequence[Any] | None = None  # None if the option was not given
    in_order: Any = None
    per: Any = None
    done_column: Any = None
    overtaken: Any = None
    retry: Retry | None = None
    name: str | None = None
    key_name: Any = None


def checked_name(name: Any, what: str) -> str:
    """Return a name that idempotency keys can be made of. Raises DeclarationError if it cannot be used."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise DeclarationError(f"{what} {name!r}: a name has 1 to {LONGEST_NAME} printable characters")
    return name


def mapper_of(record: Any) -> Mapper[Any]:
    """Return the SQLAlchemy mapper of the record's class. Raises DeclarationError if the class is not mapped."""
    mapper: Any = sqlalchemy.inspect(record, raiseerr=False) if isinstance(record, type) else None
    if not isinstance(mapper, Mapper):
        shown = record.__name__ if isinstance(record, type) else repr(record)
        raise DeclarationError(f"{shown} is no mapped class: give a declarative model (SQLModel: with table=True)")
    return mapper


def store_of(app: str, stores: Sequence[Store], mapper: Mapper[Any]) -> Store:
    """Return the app's store that owns the mapper's table. Raises DeclarationError if no store owns it."""
    for store in stores:
        if store.owns_table(mapper.local_table):
            return store
    raise DeclarationError(
        f"{mapper.class_.__name__} is in none of the stores of App({app!r}): give its base to one of them, as in Store(url, Base)"
    )


def reaction(app: str, stores: Sequence[Store], record: Any, given_clauses: Sequence[Any], given: Given, handler: Any) -> ReactionSpec:
    """Return the spec of a reaction, checked as far as is possible before everything is declared."""
    name = checked_name(signature.function_name(handler, "the handler") if given.name is None else given.name, "the reaction")
    what = f"reaction {name}"
    mapper = mapper_of(record)
    store = store_of(app, stores, mapper)
    validate_condition.check_key(what, mapper)
    clauses = validate_condition.clauses_of(what, mapper, given_clauses)
    done = None if given.done_column is None else validate_condition.done_column_of(what, mapper, given.done_column)
    if done is not None:
        clauses = (*clauses, done.is_(None))
    if not clauses and given.due is None:
        raise DeclarationError(f"{what} has no clause, so that it would be carried out for ever: say when, as in Order.status == 'placed'")
    due = timing.due_of(what, mapper, given.due)
    call = _call_spec(what, given)
    read = _handler(what, mapper, call, handler)
    occurrence = _occurrence(what, mapper, given, due, read)
    spec = ReactionSpec(
        app=app,
        name=name,
        record=mapper.class_,
        mapper=mapper,
        clauses=clauses,
        handler=read.function,
        call=call,
        prepare=_prepare(what, mapper, given, call),
        due=due,
        occurrence=occurrence,
        occurrence_said=given.occurrence is not None,
        done_column=None if done is None else done.key,
        children=children.found_in(clauses),
        in_order=validate_ordering.in_order_of(what, mapper, given.in_order),
        per=validate_ordering.per_of(what, mapper, call, given.per),
        when_overtaken=_overtaken(what, given),
        retry=_retry(what, given),
        store=store,
        key_name=_key_name(what, given),
    )
    if call is not None:
        spec.outcome_type = outcome_types.check(read.first[1], f"{what}: its handler {read.function.name}")
        outcome_types.check_covers(spec.outcome_type, call.outcome_type, f"{what}: its call")
        outcome_types.check_covers(spec.outcome_type, call.found_type, f"{what}: the lookup of its call")
    sqlite = store.sqlite_dialect
    why = None if sqlite is None else sqlite_pitfalls.of_reaction(spec, sqlite)
    if why is None and store.dialect is not None:
        why = bound_values.of_reaction(spec, store.dialect)
    if why is not None:
        raise DeclarationError(why)
    if call is not None:
        loader_options.check_root(f"{what}: its call {call.function.name}", mapper, call.load)
    _warn(spec)
    return spec


def _key_name(what: str, given: Given) -> str:
    """Return the name that idempotency keys are made of, or '' if it is the reaction's own name."""
    said = given.key_name
    if said is None:
        return ""
    if given.call is None:
        raise DeclarationError(f"{what}: key_name= is of the keys of its calls, and there is no call=")
    if isinstance(said, tuple) and len(said) == 2:
        return keys.key_name_under(checked_name(said[0], f"{what}: key_name="), checked_name(said[1], f"{what}: key_name="))
    return checked_name(said, f"{what}: key_name=")


def _occurrence(
    what: str, mapper: Mapper[Any], given: Given, due: DueSpec | None, read: signature.Signature
) -> tuple[InstrumentedAttribute[Any], ...]:
    """Return the columns that tell one occurrence from the next.

    Raises DeclarationError if the due column would be used for a call although the handler does not write it: then `occurrence=` must be
    given explicitly.
    """
    if given.occurrence is not None:
        return validate_condition.occurrence_of(what, mapper, given.occurrence)
    if due is None:
        return ()
    if given.call is not None and not isinstance(given.due, Due) and due.attribute is not None:
        name, shown = due.attribute.key, f"{mapper.class_.__name__}.{due.attribute.key}"
        if not handler_writes.writes(read.function.call, name, mapper.class_):
            raise DeclarationError(
                f"{what}: due={shown} tells one round from the next, and nothing in its handler {read.function.name} is seen to write that"
                f" column: whoever moves it makes another round, and another call under another key. Say what is meant: occurrence=() where"
                f" a record is called for once, whatever its due time; occurrence=[{shown}] where each new time is a new call; or the"
                f" columns by which you tell one round from the next"
            )
    return timing.occurrence_of(what, mapper, due)


def _call_spec(what: str, given: Given) -> CallSpec | None:
    if given.call is None:
        if given.prepare is not None:
            raise DeclarationError(f"{what}: prepare= makes what a call takes, and there is no call=")
        return None
    if not isinstance(given.call, Call):
        raise DeclarationError(f"{what}: call={given.call!r} is no call: declare it with @service.call(in_doubt=...)")
    return given.call.spec


def _retry(what: str, given: Given) -> Retry:
    if given.retry is None:
        return Retry()
    if given.call is not None:
        raise DeclarationError(f"{what}: retry= belongs to its call: @service.call(in_doubt=..., retry=Retry(...))")
    if not isinstance(given.retry, Retry):
        raise DeclarationError(f"{what}: retry={given.retry!r}: give a Retry(...)")
    return given.retry


def _overtaken(what: str, given: Given) -> WhenOvertaken | None:
    if given.overtaken is None:
        return None
    if given.call is None:
        raise DeclarationError(f"{what}: overtaken= says what becomes of a call's outcome, and there is no call=: leave it out")
    if given.overtaken not in overtaken.WORDS:
        words = ", ".join(f"{one!r}" for one in overtaken.WORDS)
        raise DeclarationError(
            f"{what}: overtaken={given.overtaken!r}: give one of {words}; or declare a handler for such outcomes with @<reaction>.overtaken"
        )
    said: WhenOvertaken = given.overtaken
    return said


def _handler(what: str, mapper: Mapper[Any], call: CallSpec | None, handler: Any) -> signature.Signature:
    first = ("the record",) if call is None else ("the record", "the outcome")
    read = read_handler(handler, f"{what}: its handler", first, IN_TRANSACTION)
    check_takes(read.what, read.first[0], mapper)
    return read


def _prepare(what: str, mapper: Mapper[Any], given: Given, call: CallSpec | None) -> Function | None:
    if call is not None and given.prepare is None:
        check_takes(f"{what}: its call {call.function.name}", call.argument_type, mapper)
    if given.prepare is None:
        return None
    read = read_handler(given.prepare, f"{what}: prepare=", ("the record",), IN_TRANSACTION)
    check_takes(read.what, read.first[0], mapper)
    return read.function


def check_takes(what: str, annotation: Any, mapper: Mapper[Any]) -> None:
    """Refuse a function that is annotated to take records of another class."""
    for one in signature.members(annotation):
        if one is inspecting.Parameter.empty or not isinstance(one, type) or sqlalchemy.inspect(one, raiseerr=False) is None:
            return
        if issubclass(mapper.class_, one) or not isinstance(sqlalchemy.inspect(one), Mapper):
            return
    names = " | ".join(one.__name__ for one in signature.members(annotation))
    raise DeclarationError(f"{what} takes {names}, and the reaction is on {mapper.class_.__name__}")


def _warn(spec: ReactionSpec) -> None:
    what = f"reaction {spec.name}"
    told = [f"{what}: {why}" for why in condition_lint.suspected(spec.clauses)]
    recurring = condition_lint.recurs(spec.clauses)
    if spec.call is not None and not spec.occurrence and not spec.occurrence_said and recurring is not None:
        told.append(
            f"{what}: where its condition holds again later, the call's key is that of the first time, and a provider answers as it did"
            f" then: add occurrence=[{spec.record.__name__}.{recurring}]"
        )
    compared = _columns_compared_by_condition(spec)
    if compared is not None:
        told.append(
            f"{what}: its condition compares {' with '.join(compared)}, and holds again when one of them moves, and the call's key is that"
            f" of the first time, so that a provider answers as it did then: add occurrence=[{spec.record.__name__}.<column>], of the one"
            " that the handler writes, or occurrence=() where a record is called for once"
        )
    for one in told:
        warnings.warn(one, DeclarationWarning, stacklevel=source_lint.stacklevel())


def _columns_compared_by_condition(spec: ReactionSpec) -> list[str] | None:
    """Return the columns that the condition of a call compares with each other.

    Returns None if the condition also ends in another way, or if an occurrence or a done column tells its repetitions apart.
    """
    kind = spec.kind
    if spec.call is None or kind is None or spec.occurrence or spec.occurrence_said or spec.done_column is not None:
        return None
    if not kind.key and spec.call.in_doubt.kind not in ("same_key", "lookup"):
        return None  # neither the call nor its lookup uses the idempotency key
    found = condition_lint.compares_own(spec.clauses, spec.mapper)
    if found is None:
        return None
    names, others = found
    handler = spec.handler.call
    if any(handler_writes.writes(handler, name, spec.record) for name in others):
        return None  # the handler also writes another column of the condition, and so moves the record on
    if others and not any(handler_writes.writes(handler, name, spec.record) for name in names):
        return None  # the source of the handler does not show how the condition ends
    return [f"{spec.record.__name__}.{name}" for name in names]


def warn_of_another(spec: ReactionSpec, other: ReactionSpec) -> None:
    """Warn if one of two reactions holds wherever the other one does: the first to run takes the record from the other."""
    if spec.done_column is not None or other.done_column is not None or spec.due is not None or other.due is not None:
        return
    for narrow, wide in ((spec, other), (other, spec)):
        if issubclass(narrow.record, wide.record) and condition_coverage.condition_is_implied(wide.clauses, narrow.clauses, narrow.mapper):
            shown = narrow.record.__name__
            warnings.warn(
                f"reaction {narrow.name}: wherever it holds, reaction {wide.name} holds as well, and the first to run takes the record from"
                f" the other: say in the condition of {wide.name} what it leaves to {narrow.name}, as in ~({shown}.<column> > ...), or give"
                f" each a column of its own that says whether it was done, by done_column={shown}.<column>",
                DeclarationWarning,
                stacklevel=source_lint.stacklevel(),
            )
            return


def warn_when_configured(spec: ReactionSpec) -> None:
    """Warn about a JSON column that the handler changes in place, unnoticed by SQLAlchemy. Call it after all models are declared."""
    if not validate_condition.has_insides(spec.mapper):
        return
    for name in validate_condition.lost_in_place(spec.mapper, source_lint.changed_in_place(spec.handler.call)):
        file, line = source_lint.place_of(spec.handler.call)
        kind = type(spec.mapper.columns[name].type).__name__
        warnings.warn_explicit(
            f"reaction {spec.name}: its handler changes the inside of {name}, which SQLAlchemy does not see, so that nothing is written:"
            f" assign a new value, or map it as MutableDict.as_mutable({kind})",
            DeclarationWarning,
            file,
            line,
        )
