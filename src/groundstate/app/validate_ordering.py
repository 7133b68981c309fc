"""Checks the options `in_order=` and `per=` of `App.on`. Raises DeclarationError with the cure."""

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


def check_in_order(what: str, mapper: Mapper[Any], given: Any) -> InOrder | None:
    """Return the given `in_order=`, with each column replaced by the record's mapped attribute. Returns None if it was not given."""
    if given is None:
        return None
    if not isinstance(given, InOrder):
        raise DeclarationError(f"{what}: in_order={given!s}: give InOrder(by, order), such as InOrder({mapper.class_.__name__}.account)")
    by = _check_ordering_column(what, mapper, given.by, "in_order=InOrder(by")
    if given.order is None:
        if given.past_held:
            raise DeclarationError(
                f"{what}: past_held= is for an order, and there is none: a held record stops no other here. Leave it out, or say which"
                " record is first, as in InOrder(by, order, past_held=True)"
            )
        return InOrder(by)
    order = _check_ordering_column(what, mapper, given.order, "in_order=InOrder(by, order")
    column = look.base_column(look.sql_element(order))
    if column.nullable:
        raise DeclarationError(
            f"{what}: in_order: {order} can be NULL, which comes neither before nor after anything: order by a column that cannot be NULL,"
            " or leave order= out"
        )
    return InOrder(by, order, past_held=bool(given.past_held))


def validate_per(what: str, mapper: Mapper[Any], call: CallSpec | None, given: Any) -> InstrumentedAttribute[Any] | None:
    """Return the attribute whose value names the tenant of the external service. Returns None if the option `per=` was not given."""
    if given is None:
        if call is not None and (call.service.limit_per is not None or call.service.rate_per is not None):
            warnings.warn(
                f"{what}: the service {call.service.name} has a limit_per or rate_per, and nothing says to which tenant a record belongs,"
                f" so that neither is kept here: add per=, as in per={mapper.class_.__name__}.tenant",
                DeclarationWarning,
                stacklevel=source_lint.stacklevel_of_declaration(),
            )
        return None
    if call is None:
        raise DeclarationError(
            f"{what}: per={given!s} names the tenant of a service that is called, and there is no call=: leave it out; to run records one"
            " at a time use in_order=InOrder(by)"
        )
    return _check_ordering_column(what, mapper, given, "per")


def _check_ordering_column(what: str, mapper: Mapper[Any], given: Any, option: str) -> InstrumentedAttribute[Any]:
    attribute = validate_condition.mapped_attribute_of(what, mapper, given, option)
    kind = look.base_column(look.sql_element(attribute)).type
    if isinstance(kind, LargeBinary) or not occurrences.has_canonical_text(kind):
        given = f"{option}={attribute}{')' * option.count('(')}"
        raise DeclarationError(
            f"{what}: {given} is of type {type(kind).__name__}, whose values have no order that two databases agree on: use a column of"
            " text, integer, UUID, date or time"
        )
    return attribute
