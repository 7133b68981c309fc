"""Checks the arguments of `App.on` and the handler, and makes a ReactionSpec. Raises DeclarationError if an effect would be lost or
repeated.
"""

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

LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class ReactionOptions:
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


def check_name(name: Any, what: str) -> str:
    """Return the given name unchanged. Raises DeclarationError if it cannot be part of idempotency keys."""
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


def make_reaction_spec(
    app: str, stores: Sequence[Store], record: Any, given_clauses: Sequence[Any], given: ReactionOptions, handler: Any
) -> ReactionSpec:
    """Return the spec of a reaction. Checks only what does not depend on other reactions and models."""
    name = check_name(signature.function_name(handler, "the handler") if given.name is None else given.name, "the reaction")
    what = f"reaction {name}"
    mapper = mapper_of(record)
    store = store_of(app, stores, mapper)
    validate_condition.check_primary_key(what, mapper)
    clauses = validate_condition.check_clauses(what, mapper, given_clauses)
    done = None if given.done_column is None else validate_condition.check_done_column(what, mapper, given.done_column)
    if done is not None:
        clauses = (*clauses, done.is_(None))
    if not clauses and given.due is None:
        raise DeclarationError(f"{what} has no clause, so that it would be carried out for ever: say when, as in Order.status == 'placed'")
    due = timing.check_due(what, mapper, given.due)
    call = _call_spec(what, given)
    read = _read_and_check_handler(what, mapper, call, handler)
    occurrence = _occurrence_columns(what, mapper, given, due, read)
    spec = ReactionSpec(
        app=app,
        name=name,
        record=mapper.class_,
        mapper=mapper,
        clauses=clauses,
        handler=read.function,
        call=call,
        prepare=_read_and_check_prepare(what, mapper, given, call),
        due=due,
        occurrence=occurrence,
        occurrence_said=given.occurrence is not None,
        done_column=None if done is None else done.key,
        children=children.find_child_marks(clauses),
        in_order=validate_ordering.check_in_order(what, mapper, given.in_order),
        per=validate_ordering.validate_per(what, mapper, call, given.per),
        when_overtaken=_check_overtaken(what, given),
        retry=_check_retry(what, given),
        store=store,
        key_name=_key_name(what, given),
    )
    if call is not None:
        spec.outcome_type = outcome_types.check_outcome_type(read.first[1], f"{what}: its handler {read.function.name}")
        outcome_types.check_handler_covers(spec.outcome_type, call.outcome_type, f"{what}: its call")
        outcome_types.check_handler_covers(spec.outcome_type, call.found_type, f"{what}: the lookup of its call")
    sqlite = store.sqlite_dialect
    why = None if sqlite is None else sqlite_pitfalls.reason_to_refuse_reaction(spec, sqlite)
    if why is None and store.dialect is not None:
        why = bound_values.reason_to_refuse_reaction(spec, store.dialect)
    if why is not None:
        raise DeclarationError(why)
    if call is not None:
        loader_options.check_options_fit_record(f"{what}: its call {call.function.name}", mapper, call.load)
    _warn_about_condition(spec)
    return spec


def _key_name(what: str, given: ReactionOptions) -> str:
    """Return the text of `key_name=`, which becomes a part of each idempotency key. Returns '' if the option was not given."""
    said = given.key_name
    if said is None:
        return ""
    if given.call is None:
        raise DeclarationError(f"{what}: key_name= is for the idempotency keys of its calls, and there is no call=: leave it out")
    if isinstance(said, tuple) and len(said) == 2:
        return keys.key_name_with_app(check_name(said[0], f"{what}: key_name="), check_name(said[1], f"{what}: key_name="))
    return check_name(said, f"{what}: key_name=")


def _occurrence_columns(
    what: str, mapper: Mapper[Any], given: ReactionOptions, due: DueSpec | None, read: signature.Signature
) -> tuple[InstrumentedAttribute[Any], ...]:
    """Return the columns of `occurrence=` or, if this option was not given, the columns of the due time. Their values tell one occurrence
    (one round of a recurring event) from the next.

    Raises DeclarationError if `occurrence=` was not given, a call is made, and the handler does not write the due column.
    """
    if given.occurrence is not None:
        return validate_condition.check_occurrence(what, mapper, given.occurrence)
    if due is None:
        return ()
    if given.call is not None and not isinstance(given.due, Due) and due.attribute is not None:
        name, shown = due.attribute.key, f"{mapper.class_.__name__}.{due.attribute.key}"
        if not handler_writes.handler_writes_attribute(read.function.call, name, mapper.class_):
            raise DeclarationError(
                f"{what}: due={shown} tells one round from the next, and nothing in its handler {read.function.name} is seen to write that"
                f" column: whoever moves it makes another round, and another call under another key. Say what is meant: occurrence=() where"
                f" a record is called for once, whatever its due time; occurrence=[{shown}] where each new time is a new call; or the"
                f" columns by which you tell one round from the next"
            )
    return timing.columns_of_due_time(what, mapper, due)


def _call_spec(what: str, given: ReactionOptions) -> CallSpec | None:
    if given.call is None:
        if given.prepare is not None:
            raise DeclarationError(f"{what}: prepare= makes the argument of a call, and there is no call=: leave it out")
        return None
    if not isinstance(given.call, Call):
        raise DeclarationError(f"{what}: call={given.call!r} is no call: declare it with @service.call(in_doubt=...)")
    return given.call.spec


def _check_retry(what: str, given: ReactionOptions) -> Retry:
    if given.retry is None:
        return Retry()
    if given.call is not None:
        raise DeclarationError(f"{what}: retry= belongs to its call: @service.call(in_doubt=..., retry=Retry(...))")
    if not isinstance(given.retry, Retry):
        raise DeclarationError(f"{what}: retry={given.retry!r}: give a Retry(...)")
    return given.retry


def _check_overtaken(what: str, given: ReactionOptions) -> WhenOvertaken | None:
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


def _read_and_check_handler(what: str, mapper: Mapper[Any], call: CallSpec | None, handler: Any) -> signature.Signature:
    first = ("the record",) if call is None else ("the record", "the outcome")
    read = read_handler(handler, f"{what}: its handler", first, IN_TRANSACTION)
    check_record_annotation(read.what, read.first[0], mapper)
    return read


def _read_and_check_prepare(what: str, mapper: Mapper[Any], given: ReactionOptions, call: CallSpec | None) -> Function | None:
    if call is not None and given.prepare is None:
        check_record_annotation(f"{what}: its call {call.function.name}", call.argument_type, mapper)
    if given.prepare is None:
        return None
    read = read_handler(given.prepare, f"{what}: prepare=", ("the record",), IN_TRANSACTION)
    check_record_annotation(read.what, read.first[0], mapper)
    return read.function


def check_record_annotation(what: str, annotation: Any, mapper: Mapper[Any]) -> None:
    """Raise DeclarationError if the annotation says that the function takes records of another class than the reaction's."""
    for one in signature.union_members(annotation):
        if one is inspecting.Parameter.empty or not isinstance(one, type) or sqlalchemy.inspect(one, raiseerr=False) is None:
            return
        if issubclass(mapper.class_, one) or not isinstance(sqlalchemy.inspect(one), Mapper):
            return
    names = " | ".join(one.__name__ for one in signature.union_members(annotation))
    raise DeclarationError(f"{what} takes {names}, and the reaction is on {mapper.class_.__name__}")


def _warn_about_condition(spec: ReactionSpec) -> None:
    what = f"reaction {spec.name}"
    told = [f"{what}: {why}" for why in condition_lint.suspicious_clause_warnings(spec.clauses)]
    recurring = condition_lint.column_compared_with_clock(spec.clauses)
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
        warnings.warn(one, DeclarationWarning, stacklevel=source_lint.stacklevel_of_declaration())


def _columns_compared_by_condition(spec: ReactionSpec) -> list[str] | None:
    """Return the columns, as `Class.column`, that the reaction's condition compares with each other, if a later change of them could repeat
    the call.

    The repeated call would have the idempotency key of the first call. Returns None if this is ruled out, for example by an occurrence or a
    done column, or if the source code of the handler does not show whether it is ruled out.
    """
    kind = spec.kind
    if spec.call is None or kind is None or spec.occurrence or spec.occurrence_said or spec.done_column is not None:
        return None
    if not kind.key and spec.call.in_doubt.kind not in ("same_key", "lookup"):
        return None  # neither the call nor its lookup uses an idempotency key
    found = condition_lint.attributes_compared_with_each_other(spec.clauses, spec.mapper)
    if found is None:
        return None
    names, others = found
    handler = spec.handler.call
    if any(handler_writes.handler_writes_attribute(handler, name, spec.record) for name in others):
        return None  # the handler makes the condition false by writing another column, so the compared columns do not matter
    if others and not any(handler_writes.handler_writes_attribute(handler, name, spec.record) for name in names):
        return None  # the source of the handler does not show how it makes the condition false
    return [f"{spec.record.__name__}.{name}" for name in names]


def warn_if_one_implies_other(spec: ReactionSpec, other: ReactionSpec) -> None:
    """Warn if every record that meets the condition of one reaction also meets the condition of the other reaction. The reaction that runs
    first can then keep the other reaction from running on the record.
    """
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
                stacklevel=source_lint.stacklevel_of_declaration(),
            )
            return


def warn_about_unnoticed_changes(spec: ReactionSpec) -> None:
    """Warn about each JSON column whose value the handler changes in place, if SQLAlchemy does not notice the change. Call it when all
    models are declared.
    """
    if not validate_condition.has_columns_mutable_in_place(spec.mapper):
        return
    for name in validate_condition.columns_changed_unnoticed(spec.mapper, source_lint.attributes_changed_in_place(spec.handler.call)):
        file, line = source_lint.file_and_line_of(spec.handler.call)
        kind = type(spec.mapper.columns[name].type).__name__
        warnings.warn_explicit(
            f"reaction {spec.name}: its handler changes the inside of {name}, which SQLAlchemy does not see, so that nothing is written:"
            f" assign a new value, or map it as MutableDict.as_mutable({kind})",
            DeclarationWarning,
            file,
            line,
        )
