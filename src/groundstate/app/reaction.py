"""Reactions, as `App.on` returns them: each can be called like its handler, and has decorators for further handlers, such as `expired`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from groundstate.app import signature
from groundstate.rules.specs import Function, ReactionSpec
from groundstate.values.answers import Failure
from groundstate.values.errors import DeclarationError

R = TypeVar("R")  # the class of the record
O = TypeVar("O")  # the call's outcome  # noqa: E741 - one letter, like R and P
P = ParamSpec("P")  # the handler's further parameters, for which groundstate supplies values by their annotations
Q = ParamSpec("Q")  # parameters after the first of a handler such as `expired`; groundstate supplies values by their annotations

IN_TRANSACTION = ("session", "ctx")
_OVERTAKEN = ("session", "ctx", "key", "occurrence")


class _DeclaredReaction(Generic[R]):
    """The base class of reactions with a call and of reactions without."""

    DECLARED_AS = "a reaction already: give it a function of its own, or declare the plain function for each by app.on(...)(function)"

    def __init__(self, spec: ReactionSpec) -> None:
        self.spec = spec
        self.__name__ = signature.name_of(spec.handler.call)
        self.__doc__ = spec.handler.call.__doc__
        self.__wrapped__ = spec.handler.call

    def __repr__(self) -> str:
        return f"<reaction {self.spec.name} of {self.spec.app}>"

    def gave_up(self, handler: Callable[Concatenate[R, Failure, Q], None], /) -> Callable[Concatenate[R, Failure, Q], None]:
        """Declare the handler that runs after the last try has failed. The handler must change the record so that the condition no longer
        holds.

        The handler takes the record and a `Failure`. It may also have parameters annotated `session: Session` and `ctx: ReactionContext`.

        Raises:
            DeclarationError: the reaction has such a handler already, or the handler takes an exception instead of a `Failure`.
        """
        read = self._extra_handler_signature(handler, "gave_up", ("the record", "the Failure"), IN_TRANSACTION)
        kinds = [one for one in signature.union_members(read.first[1]) if isinstance(one, type)]
        if any(issubclass(one, BaseException) for one in kinds) and not any(issubclass(Failure, one) for one in kinds):
            raise DeclarationError(
                f"{read.what} takes an exception, but it is given a Failure, since the exception may have been raised in another process."
                " Annotate it `failure: Failure`; its `error` is the text of the exception"
            )
        self.spec.gave_up = read.function
        return handler

    def expired(self, handler: Callable[Concatenate[R, Q], None], /) -> Callable[Concatenate[R, Q], None]:
        """Declare the handler that runs if a record was not carried out within `valid_for` of its due time. The handler must change the
        record so that the condition no longer holds.

        This handler runs once, in a transaction of its own, instead of the call and the ordinary handler. If the record has an attempt in
        doubt, the attempt is settled first.

        Raises:
            DeclarationError: the reaction has no `due=after(..., valid_for=...)`, so that the handler would never run.
        """
        self._check_has_valid_for()
        self.spec.expired = self._extra_handler_function(handler, "expired", ("the record",), IN_TRANSACTION)
        return handler

    def _check_has_valid_for(self) -> None:
        if self.spec.due is None or self.spec.due.valid_for is None:
            raise DeclarationError(
                f"reaction {self.spec.name} has an expired handler, and nothing says when it is too late: due=after(column, ...,"
                " valid_for=timedelta(...))"
            )

    def _extra_handler_function(self, handler: Any, name: str, first: tuple[str, ...], supplied: tuple[str, ...]) -> Function:
        return self._extra_handler_signature(handler, name, first, supplied).function

    def _extra_handler_signature(self, handler: Any, name: str, first: tuple[str, ...], supplied: tuple[str, ...]) -> signature.Signature:
        if getattr(self.spec, name) is not None:
            raise DeclarationError(f"reaction {self.spec.name} has a {name} handler already ({getattr(self.spec, name).name})")
        return read_handler(handler, f"reaction {self.spec.name}: its {name} handler", first, supplied)


class Plain(_DeclaredReaction[R], Generic[R, P]):
    """A reaction without a call. It can be called like its handler, for unit tests."""

    def __call__(self, record: R, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call the decorated handler directly, as in a unit test."""
        self.spec.handler.call(record, *args, **kwargs)


class Reaction(_DeclaredReaction[R], Generic[R, O, P]):
    """A reaction with a call. It can be called like its handler, for unit tests."""

    def __call__(self, record: R, outcome: O, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call the decorated handler directly, as in a unit test."""
        self.spec.handler.call(record, outcome, *args, **kwargs)

    def overtaken(self, handler: Callable[Concatenate[R, O, Q], None], /) -> Callable[Concatenate[R, O, Q], None]:
        """Declare the handler for an outcome that came too late: the condition no longer holds, or the record has another occurrence.

        Without this handler, and without `App.on(overtaken=...)`, the ordinary handler is run. If the ordinary handler writes nothing but a
        done column, its write is kept. Otherwise the outcome is held for a person; under `InDoubt.repeat()` it is dropped with a line in
        the log.

        Raises:
            DeclarationError: the reaction already has such a handler, or it has the option `overtaken=`.
        """
        if self.spec.when_overtaken is not None:
            raise DeclarationError(
                f"reaction {self.spec.name} says overtaken={self.spec.when_overtaken!r} already, and has an overtaken handler: leave out"
                " the one or the other"
            )
        self.spec.overtaken = self._extra_handler_function(handler, "overtaken", ("the record", "the outcome"), _OVERTAKEN)
        return handler


def read_handler(handler: Any, what: str, first: tuple[str, ...], supplied: tuple[str, ...]) -> signature.Signature:
    """Return the handler's signature. Raises DeclarationError if the handler is async or wants a parameter that groundstate does not
    supply.
    """
    if signature.is_async(handler):
        raise DeclarationError(
            f"{what} {signature.name_of(handler)} is async: it runs inside a transaction, where nothing is awaited. Make it a plain"
            " `def`, and do what must be awaited in the reaction's call"
        )
    return signature.read_signature(handler, what, first, supplied)
