"""Declares external services and the calls that are made to them. Calls nothing itself."""

from __future__ import annotations

import inspect
import typing
import warnings
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from groundstate.app import decorator_forms, loader_options, signature, source_lint, validate_not_done
from groundstate.rules.policy import MARGIN, InDoubt, Retry
from groundstate.rules.rate import Rate
from groundstate.rules.specs import CallSpec, NotDoneWhen, ServiceSpec
from groundstate.values.answers import Absent, NotDone, Unknown
from groundstate.values.errors import DeclarationError, DeclarationWarning

A = TypeVar("A")  # the first argument of a call: the record, or what `prepare` made of it
O = TypeVar("O")  # the call's outcome  # noqa: E741 - one letter, as R and P in the other signatures
Q = ParamSpec("Q")  # the parameters that groundstate supplies by their annotations

_Found = Absent | Unknown | type[Absent] | type[Unknown]
_FOUND_NOTHING = (Absent, Unknown, type[Absent], type[Unknown], type[Absent | Unknown], type[Unknown | Absent])
_TO_CALL = ("key", "ctx", "client")
_TO_CALL_MANY = ("keys", "ctx", "client")
_TO_LOOKUP = ("key", "ctx", "occurrence", "client")
LONGEST_SPAN = timedelta(days=366)
_SECONDS_30 = timedelta(seconds=30)
_RETRY = Retry()


class Call(Generic[A, O]):
    """A declared call to an external service. It can still be called like its plain function, as in a unit test."""

    DECLARED_AS = (
        "a call to the service: given as a function it would run with no attempt written before it, and again after each crash. Give it"
        " by call=, as in @app.on(..., call=...) above a handler that takes its outcome"
    )

    def __init__(self, spec: CallSpec) -> None:
        self.spec = spec
        self.__name__ = signature.name_of(spec.function.call)
        self.__doc__ = spec.function.call.__doc__
        self.__wrapped__ = spec.function.call

    def __call__(self, argument: A, /, *args: Any, **supplies: Any) -> Any:
        """Call the function itself, as a unit test does: nothing is recorded."""
        return self.spec.function.call(argument, *args, **supplies)

    def __repr__(self) -> str:
        return f"<call {self.__name__} to {self.spec.service.name}>"

    @overload
    def lookup(self, lookup: Callable[Concatenate[A, Q], Awaitable[O | _Found]], /) -> None: ...
    @overload
    def lookup(self, lookup: Callable[Concatenate[A, Q], O | _Found], /) -> None: ...
    @decorator_forms.with_example("@charge.lookup, without parentheses,")
    def lookup(self, lookup: Any, /) -> None:
        """Declare the lookup of this call: a function that asks the service whether the call was carried out.

        It takes the same first argument as the call, and by annotation `key: IdempotencyKey`, `ctx: ReactionContext`, `occurrence:
        Occurrence` and the service's `client`. It returns the outcome of the call, or `Absent` if the service did not act on the call, or
        `Unknown` if it cannot tell.

        Raises:
            DeclarationError: the call has a lookup already, the lookup's annotation does not allow `Absent`, or the policy lacks
                `settle_after`.
        """
        spec = self.spec
        if spec.lookup is not None:
            raise DeclarationError(f"call {self.__name__} has a lookup already ({spec.lookup.name})")
        read = signature.read(lookup, f"call {self.__name__}: its lookup", ["what the call takes"], _supplied(_TO_LOOKUP, spec.service))
        _must_say_absent(read)
        if _says_none(read.returns) and not _may_be_none(spec.outcome_type):
            warnings.warn(
                f"call {self.__name__}: its lookup {read.function.name} is annotated to return None, and None is taken for the outcome of a"
                " call that was made: return Absent() where the service was not acted on, and Unknown() where it cannot tell; or annotate"
                " the call so that None is an outcome of it",
                DeclarationWarning,
                stacklevel=source_lint.stacklevel(),
            )
        if spec.in_doubt.kind == "same_key" and spec.in_doubt.settle_after is None:
            raise DeclarationError(
                f"call {self.__name__} has a lookup, which needs to know when Absent can be believed: InDoubt.same_key(kept_for=...,"
                " settle_after=...)"
            )
        if spec.in_doubt.kind in ("hold", "repeat"):
            warnings.warn(
                f"call {self.__name__}: its lookup is never asked under InDoubt.{spec.in_doubt.kind}(); choose"
                " in_doubt=InDoubt.lookup(settle_after=...), or"
                " remove it",
                DeclarationWarning,
                stacklevel=source_lint.stacklevel(),
            )
        spec.lookup, spec.found_type = read.function, _without(_outcome(read.returns), _FOUND_NOTHING)


class _CallOf(Protocol):
    @overload
    def __call__(self, call: Callable[Concatenate[A, Q], Awaitable[O]], /) -> Call[A, O]: ...
    @overload
    def __call__(self, call: Callable[Concatenate[A, Q], O], /) -> Call[A, O]: ...


class _ManyOf(Protocol):
    @overload
    def __call__(self, call: Callable[Concatenate[Sequence[A], Q], Awaitable[Mapping[A, O | NotDone]]], /) -> Call[A, O]: ...
    @overload
    def __call__(self, call: Callable[Concatenate[Sequence[A], Q], Awaitable[Sequence[O | NotDone]]], /) -> Call[A, O]: ...
    @overload
    def __call__(self, call: Callable[Concatenate[Sequence[A], Q], Mapping[A, O | NotDone]], /) -> Call[A, O]: ...
    @overload
    def __call__(self, call: Callable[Concatenate[Sequence[A], Q], Sequence[O | NotDone]], /) -> Call[A, O]: ...


class ExternalService:
    """An external service, such as a payment provider, with the settings that all calls and lookups to it share.

    Args:
        name: the name of the service in logs and lists. Limits are counted by this name.
        limit: how many calls and lookups may be in flight at once, in all workers together. Without a limit it is 100 in each worker.
        rate: how many calls and lookups may be begun in any span of time, in all workers together.
        limit_per: like `limit`, but for each tenant: each value of the column that a reaction names by `per`.
        rate_per: like `rate`, but for each tenant.
        not_done: the exceptions that prove that the service did not act: exception types, dotted paths of types, and functions that take an
            exception and return True for such a one. Ready-made lists: `not_done.HTTPX`, `not_done.REQUESTS`, `not_done.SMTPLIB`,
            `not_done.BOTOCORE`.
        client: a function that makes a client, which must be a context manager. The worker opens it and passes it to parameters named
            `client`.

    Raises:
        DeclarationError: an argument makes no sense; the message names the cure.
    """

    def __init__(  # noqa: PLR0913  # each parameter is an option of a service
        self,
        name: str,
        *,
        limit: int | None = None,
        rate: Rate | None = None,
        limit_per: int | None = None,
        rate_per: Rate | None = None,
        not_done: Sequence[NotDoneWhen] = (),
        client: Callable[[], AbstractAsyncContextManager[Any] | AbstractContextManager[Any]] | None = None,
    ) -> None:
        if not _is_name(name):
            raise DeclarationError(f"ExternalService({name!r}): give it a name of printable characters")
        for option, given in (("limit", limit), ("limit_per", limit_per)):
            if given is not None and not _is_count(given):
                without = "100 in each worker" if option == "limit" else "no such limit"
                raise DeclarationError(
                    f"ExternalService({name!r}, {option}={given!r}): at least 1 call must be possible; leave it out for {without}"
                )
        for option, said in (("rate", rate), ("rate_per", rate_per)):
            _check_rate(f"ExternalService({name!r}, {option}={said!r})", said)
        if client is not None and not isinstance(client, type) and (hasattr(client, "__aenter__") or hasattr(client, "__enter__")):
            raise DeclarationError(
                f"ExternalService({name!r}, client=...): that client was made at import, and would be bound to another loop; give what"
                " makes it,"
                " as in client=lambda: httpx.AsyncClient()"
            )
        if client is not None and not callable(client):
            raise DeclarationError(f"ExternalService({name!r}, client={client!r}): give a function that makes the client, such as a lambda")
        self.spec = ServiceSpec(name, limit, validate_not_done.checked(not_done), client, rate, limit_per, rate_per)

    @property
    def name(self) -> str:
        """The name of the service in logs and lists."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"<service {self.name}>"

    @decorator_forms.with_example("@bank.call(in_doubt=InDoubt.hold()), or another policy,")
    def call(  # noqa: PLR0913  # each parameter is an option of a call
        self,
        *,
        in_doubt: InDoubt,
        timeout: timedelta = _SECONDS_30,
        retry: Retry = _RETRY,
        load: Sequence[Any] = (),
        stop_when_overtaken: bool = False,
        name: str | None = None,
        answers_for: Sequence[str] = (),
    ) -> _CallOf:
        """Declare a call to this service, as a decorator of the function that makes it.

        The function may be sync or async. Its first argument is a read-only snapshot of the record, or what `prepare` made of the record.

        Args:
            in_doubt: how a call is settled that may have been made: `InDoubt.repeat()`, `InDoubt.same_key()`, `InDoubt.lookup()` or
                `InDoubt.hold()`.
            timeout: how long the call may take. A call that takes longer is in doubt.
            retry: when a failed call is tried again.
            load: a list of SQLAlchemy loader options for the snapshot, such as `[selectinload(Order.items)]`.
            stop_when_overtaken: cancel the call when the condition no longer holds. Only for an async call under `InDoubt.repeat()`.
            name: the name by which attempts know the call; the function's name if it is left out. If you rename the function, and it still
                makes the same call, give its old name here: an attempt in doubt that was begun under another name is held for a person.
            answers_for: names of other services. The lookup of this call also knows of calls to them that earlier code of the reaction left
                in doubt.

        Raises:
            DeclarationError: the call, as declared, cannot keep what its policy promises.
        """

        def declare(call: Any, /) -> Call[Any, Any]:
            read = signature.read(call, "the call", ["the record (or what `prepare` makes)"], _supplied(_TO_CALL, self.spec))
            _check(read, in_doubt, timeout, retry)
            loads = loader_options.checked(read.what, load)
            if in_doubt.kind == "same_key" and "key" not in read.function.wants.values():
                raise DeclarationError(
                    f"{read.what}: under InDoubt.same_key() it must take the key and send it: add a parameter `key: IdempotencyKey`"
                )
            if stop_when_overtaken and (in_doubt.kind != "repeat" or not read.function.is_async):
                raise DeclarationError(
                    f"{read.what}: stop_when_overtaken= is for async calls under InDoubt.repeat(): stopped elsewhere it would be in doubt"
                )
            made = CallSpec(self.spec, read.function, in_doubt, timeout, retry, loads, stop_when_overtaken)
            made.name, made.answers_for = _call_name(read, name), _service_names(read, answers_for)
            made.outcome_type, made.argument_type = _outcome(read.returns), read.first[0]
            return Call(made)

        return declare

    @decorator_forms.with_example("@bank.call_many(size=10, in_doubt=InDoubt.hold()), or another policy,")
    def call_many(
        self,
        *,
        size: int,
        in_doubt: InDoubt,
        timeout: timedelta = _SECONDS_30,
        retry: Retry = _RETRY,
        name: str | None = None,
        answers_for: Sequence[str] = (),
    ) -> _ManyOf:
        """Declare one call that is made for many records together, with an attempt for each record.

        The function takes a sequence of records. It returns a mapping from the records to their outcomes, or a list of the outcomes in the
        same order; `NotDone` is the outcome of a record that was surely not done. A record that is missing from the mapping is in doubt; if
        a list has another length, all records are. By annotation the function takes `keys: Sequence[IdempotencyKey]`, in the order of the
        records.

        Args:
            size: how many records one call is made for, at most.
            in_doubt: how a record is settled whose call may have been made, as for `call`.
            timeout: how long one call for all its records may take.
            retry: when a failed record is tried again; each record counts its own tries.
            name: the name by which attempts know the call, as for `call`.
            answers_for: names of other services that the lookup knows of too, as for `call`.

        Raises:
            DeclarationError: the call, as declared, cannot keep what its policy promises.
        """
        if not _is_count(size):
            raise DeclarationError(f"call_many(size={size!r}): at least 1 record is in a call")

        def declare(call: Any, /) -> Call[Any, Any]:
            read = signature.read(call, "the call", ["a sequence of the records"], _supplied(_TO_CALL_MANY, self.spec))
            _check(read, in_doubt, timeout, retry)
            keys = next((name for name, supply in read.function.wants.items() if supply == "keys"), None)
            if in_doubt.kind == "same_key" and keys is None:
                raise DeclarationError(
                    f"{read.what}: under InDoubt.same_key() it must take the keys and send them: add a parameter `keys:"
                    " Sequence[IdempotencyKey]`"
                )
            made = CallSpec(self.spec, read.function, in_doubt, timeout, retry, many=size, wants_keys=keys)
            made.name, made.answers_for = _call_name(read, name), _service_names(read, answers_for)
            made.outcome_type, made.argument_type = _outcome_of_many(read.returns), _element(read.first[0])
            return Call(made)

        return declare


def _is_name(given: Any) -> bool:
    return isinstance(given, str) and bool(given.strip()) and given.isprintable()


def _call_name(read: signature.Signature, given: Any) -> str:
    if given is None:
        return read.function.plain_name
    if not _is_name(given):
        raise DeclarationError(f"{read.what}: name={given!r}: give it a name of printable characters")
    return str(given)


def _service_names(read: signature.Signature, given: Any) -> tuple[str, ...]:
    names = () if isinstance(given, str) else tuple(given)
    if (given and not names) or not all(_is_name(one) for one in names):
        raise DeclarationError(f"{read.what}: answers_for={given!r}: give a list of names of services, such as answers_for=['stripe']")
    return names


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= 1


def _check_rate(what: str, rate: Any) -> None:
    if rate is None:
        return
    if not isinstance(rate, Rate):
        raise DeclarationError(f"{what}: give a Rate, such as Rate(10, timedelta(seconds=1)) for ten calls in any second")
    if not _is_count(rate.times):
        raise DeclarationError(f"{what}: at least 1 call must be possible in the span: Rate(times=1, ...) or more")
    each: Any = rate.each
    if not isinstance(each, timedelta) or not timedelta() < each <= LONGEST_SPAN:
        raise DeclarationError(
            f"{what}: give a span of more than zero and {LONGEST_SPAN.days} days at most, such as each=timedelta(minutes=1)"
        )


def _supplied(all_of: Sequence[str], service: ServiceSpec) -> tuple[str, ...]:
    return tuple(one for one in all_of if one != "client" or service.client is not None)


def _check(read: signature.Signature, in_doubt: Any, timeout: Any, retry: Any) -> None:
    if not isinstance(in_doubt, InDoubt):
        raise DeclarationError(
            f"{read.what}: in_doubt={in_doubt!r}: choose InDoubt.repeat(), InDoubt.same_key(...), InDoubt.lookup(...) or InDoubt.hold()"
        )
    if not isinstance(timeout, timedelta) or timeout <= timedelta():
        raise DeclarationError(f"{read.what}: timeout={timeout!r}: give a timedelta of more than zero, such as timedelta(seconds=30)")
    if not isinstance(retry, Retry):
        raise DeclarationError(f"{read.what}: retry={retry!r}: give a Retry(...)")
    wait = timeout if in_doubt.settle_after is None else in_doubt.settle_after
    if in_doubt.kept_for is not None and in_doubt.kept_for <= timeout + MARGIN + wait:
        raise DeclarationError(
            f"{read.what}: its key is kept for {in_doubt.kept_for}, and a second call under it could land up to"
            f" {timeout + MARGIN + wait} after it"
            " began (timeout, 5 s, settle_after): it would never be called again; shorten the timeout or settle_after"
        )


def _must_say_absent(read: signature.Signature) -> None:
    if read.returns is inspect.Parameter.empty:
        raise DeclarationError(f"{read.what}: annotate what it returns, as in -> Receipt | Absent | Unknown: None could mean an outcome")
    if isinstance(read.returns, signature.Unresolved):
        says = "Absent" in read.returns.text
    else:
        said = signature.members(read.returns)
        says = any(_can_be_absent(one) for one in said)
    if not says:
        raise DeclarationError(
            f"{read.what} is annotated so that it cannot say Absent: annotate it -> Receipt | Absent | Unknown, and return Absent()"
            " where the"
            " outside was not acted on; None or False would be taken for an outcome"
        )


def _says_none(returns: Any) -> bool:
    return not isinstance(returns, signature.Unresolved) and type(None) in [*map(_class_of_none, signature.members(returns))]


def _may_be_none(outcome: Any) -> bool:
    """Whether the call's annotation says that None can be an outcome. Returns False if the call is not annotated."""
    return outcome is not Any and _says_none(outcome)


def _class_of_none(member: Any) -> Any:
    return type(None) if member is None else member


def _can_be_absent(member: Any) -> bool:
    kind = typing.get_args(member)[0] if typing.get_origin(member) is type else member
    return any(one in (Absent, Any) for one in signature.members(kind))


def _outcome(returns: Any) -> Any:
    if returns is inspect.Parameter.empty or isinstance(returns, signature.Unresolved):
        return Any
    if typing.get_origin(returns) in (Awaitable, typing.Awaitable):
        return typing.get_args(returns)[0]
    return returns


def _element(annotation: Any) -> Any:
    arguments = typing.get_args(signature.bare(annotation))
    return arguments[0] if len(arguments) == 1 else inspect.Parameter.empty


def _outcome_of_many(returns: Any) -> Any:
    arguments = typing.get_args(signature.bare(_outcome(returns)))
    if not arguments:
        return Any
    return _without(arguments[-1], (NotDone,))


def _without(annotation: Any, said: Collection[Any]) -> Any:
    """Remove the types in `said` from a union, so that only the outcome's type is left. Returns Any if nothing is left."""
    kept = [one for one in signature.members(annotation) if one not in said]
    return typing.Union[tuple(kept)] if kept else Any  # noqa: UP007 - the members are known only when this runs
