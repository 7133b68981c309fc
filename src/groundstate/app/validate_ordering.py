"""Checks the options `in_order=` and `per=` of `App.on`. Raises DeclarationError with the cure; runs no query."""

from __future__ import annotations

import warnings
from typing import Any

from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.sql.sqltypes import LargeBinary

from groundstate.app import source_lint, validate_condition
from groundstate.rules import occurrences
from groundstate.rules import sql_inspect as look
from groundstate.rules.in_order import InOrder
from groundstate.rules.specs import CallSpec
from groundstate.values.errors import DeclarationError, DeclarationWarning


def in_order_of(what: str, mapper: Mapper[Any], given: Any) -> InOrder | None:
    """Return the order of a reaction, with the record's mapped attributes as its columns. Returns None if `in_order=` was not given."""
    if given is None:
        return None
    if not isinstance(given, InOrder):
        raise DeclarationError(f"{what}: in_order={given!s}: give InOrder(by, order), such as InOrder({mapper.class_.__name__}.account)")
    by = _column(what, mapper, given.by, "in_order=InOrder(by")
    if given.order is None:
        if given.past_held:
            raise DeclarationError(
                f"{what}: past_held= is for an order, and there is none: a held record stops no other here. Leave it out, or say who is"
                " first, as in InOrder(by, order, past_held=True)"
            )
        return InOrder(by)
    order = _column(what, mapper, given.order, "in_order=InOrder(by, order")
    column = look.base_column(look.element(order))
    if column.nullable:
        raise DeclarationError(
            f"{what}: in_order: {order} can be NULL, which comes neither before nor after anything: order by a column that cannot be NULL,"
            " or leave order= out"
        )
    return InOrder(by, order, past_held=bool(given.past_held))


def per_of(what: str, mapper: Mapper[Any], call: CallSpec | None, given: Any) -> InstrumentedAttribute[Any] | None:
    """Return the attribute whose value names the tenant of the external service. Returns None if `per=` was not given."""
    if given is None:
        if call is not None and (call.service.limit_per is not None or call.service.rate_per is not None):
            warnings.warn(
                f"{what}: the service {call.service.name} has a limit_per or rate_per, and nothing says of which part a record is, so that"
                f" neither is kept here: add per=, as in per={mapper.class_.__name__}.tenant",
                DeclarationWarning,
                stacklevel=source_lint.stacklevel(),
            )
        return None
    if call is None:
        raise DeclarationError(
            f"{what}: per={given!s} says to which part of a service a record talks, and there is no call=: leave it out; for one at a time"
            " use in_order=InOrder(by)"
        )
    return _column(what, mapper, given, "per")


def _column(what: str, mapper: Mapper[Any], given: Any, option: str) -> InstrumentedAttribute[Any]:
    attribute = validate_condition.column_of(what, mapper, given, option)
    kind = look.base_column(look.element(attribute)).type
    if isinstance(kind, LargeBinary) or not occurrences.has_one_text(kind):
        given = f"{option}={attribute}{')' * option.count('(')}"
        raise DeclarationError(
            f"{what}: {given} is of type {type(kind).__name__}, whose values have no order that two databases agree on: use a column of"
            " text, integer, UUID, date or time"
        )
    return attribute
