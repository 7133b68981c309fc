"""Checks the option `load=` of a call: SQLAlchemy loader options for the records of the reaction that makes the call.

Raises DeclarationError with the cure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.orm import InstrumentedAttribute, Mapper, RelationshipProperty
from sqlalchemy.orm.interfaces import ORMOption

from groundstate.rules.specs import ReactionSpec
from groundstate.values.errors import DeclarationError

_CURE = "give a list of SQLAlchemy's loader options, as in load=[selectinload(Order.lines)]"


def check_options(what: str, given: Any) -> tuple[Any, ...]:
    """Return the options as a tuple. Raises DeclarationError if one is no loader option. `check_options_fit_record` checks them further."""
    if isinstance(given, ORMOption):
        raise DeclarationError(
            f"{what}: load={_show_option(given)}: that is one option: give a list of them, as in load=[selectinload(...)]"
        )
    if isinstance(given, str) or not isinstance(given, Collection):
        raise DeclarationError(f"{what}: load={_show_option(given)}: {_cure_for_wrong_option(given)}")
    for one in given:
        if not isinstance(one, ORMOption):
            raise DeclarationError(f"{what}: load=[{_show_option(one)}]: {_cure_for_wrong_option(one)}")
    return tuple(given)


def check_options_fit_record(what: str, mapper: Mapper[Any], options: Collection[Any]) -> None:
    """Raise DeclarationError if an option is for another class than the record's."""
    for one in options:
        path = getattr(getattr(one, "path", None), "path", ())  # SQLAlchemy has no public name for an option's path
        root = path[0] if path else None
        if isinstance(root, Mapper) and not (root.isa(mapper) or mapper.isa(root)):
            name = mapper.class_.__name__
            raise DeclarationError(
                f"{what}: load= is for {root.class_.__name__}, and the record is {name}: give loader options of {name}, as in"
                f" load=[selectinload({name}.<relationship>)]"
            )


def check_options_compile(spec: ReactionSpec) -> None:
    """Raise DeclarationError if SQLAlchemy cannot compile a SELECT with `load=` of the reaction's call. Call it when all models are
    configured.
    """
    if spec.call is None or not spec.call.load:
        return
    try:
        select(spec.record).options(*spec.call.load).compile()
    except (ArgumentError, InvalidRequestError) as error:
        what = f"reaction {spec.name}: load= of its call {spec.call.function.name} cannot be loaded with {spec.record.__name__}"
        raise DeclarationError(f"{what}: {error}") from error


def _cure_for_wrong_option(given: Any) -> str:
    if isinstance(given, InstrumentedAttribute) and isinstance(given.comparator, RelationshipProperty.Comparator):
        return f"that is a relationship: write load=[selectinload({given})]"
    return f"that is no loader option: {_CURE}"


def _show_option(given: Any) -> str:
    if isinstance(given, InstrumentedAttribute):
        return str(given)
    if isinstance(given, ORMOption):
        return "selectinload(...)"
    return given.__name__ if isinstance(given, type) else repr(given)
