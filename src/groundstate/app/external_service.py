"""Declares external services and the calls to them. This module makes no call itself."""

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
O = TypeVar("O")  # the call's outcome  # noqa: E741 - one letter, like R and P
Q = ParamSpec("Q")  # the function's further parameters, for which groundstate supplies values by their annotations

_Found = Absent | Unknown | type[Absent] | type[Unknown]
_FOUND_NOTHING = (Absent, Unknown, type[Absent], type[Unknown], type[Absent | Unknown], type[Unknown | Absent])
_TO_CALL = ("key", "ctx", "client")
_TO_CALL_MANY = ("keys", "ctx", "client")
_TO_LOOKUP = ("key", "ctx", "occurrence", "client")
LONGEST_SPAN = timedelta(days=366)
_SECONDS_30 = timedelta(seconds=30)
_RETRY = Retry()


class Call(Generic[A, O]):
    """A declared call to an external service. The object can be called like the decorated function, as in a unit test."""

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
        """Call the decorated function directly, as in a unit test: no attempt is written."""
        return self.spec.function.call(argument, *args, **supplies)

    def __repr__(self) -> str:
        return f"<call {self.__name__} to {self.spec.service.name}>"

    @overload
    def lookup(self, lookup: Callable[Concatenate[A, Q], Awaitable[O | _Found]], /) -> None: ...
    @overload
    def lookup(self, lookup: Callable[Concatenate[A, Q], O | _Found], /) -> None: ...
    @decorator_forms.show_example_on_misuse("@charge.lookup, without parentheses,")
    def lookup(self, lookup: Any, /) -> None:
        """Declare the lookup of this call: a function that asks the service whether the call was carried out.

        The lookup takes the same first argument as the call. It may also have parameters annotated `key: IdempotencyKey`, `ctx:
        ReactionContext` and `occurrence: Occurrence`, and one named `client` for the service's client. It returns the outcome of the call,
        or `Absent` if the service did not act on the call, or `Unknown` if this cannot be told yet.

        Raises:
            DeclarationError: the call has a lookup already, the lookup's annotation does not allow `Absent`, or the policy lacks
                `settle_after`.
        """
        spec = self.spec
        if spec.lookup is not None:
            raise DeclarationError(f"call {self.__name__} has a lookup already ({spec.lookup.name})")
        read = signature.read_signature(
            lookup, f"call {self.__name__}: its lookup", ["what the call takes"], _parameters_supplied_by(_TO_LOOKUP, spec.service)
        )
        _check_can_return_absent(read)
        if _annotation_includes_none(read.returns) and not _outcome_can_be_none(spec.outcome_type):
            warnings.warn(
                f"call {self.__name__}: its lookup {read.function.name} is annotated to return None, and None is taken for the outcome of a"
                " call that was made: return Absent() where the service was not acted on, and Unknown() where it cannot tell; or annotate"
                " the call so that None is an outcome of it",
                DeclarationWarning,
                stacklevel=source_lint.stacklevel_of_declaration(),
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
                stacklevel=source_lint.stacklevel_of_declaration(),
            )
        spec.lookup, spec.found_type = read.function, _remove_from_union(_outcome_type(read.returns), _FOUND_NOTHING)


class _CallDecorator(Protocol):
    @overload
    def __call__(self, call: Callable[Concatenate[A, Q], Awaitable[O]], /) -> Call[A, O]: ...
    @overload
    def __call__(self, call: Callable[Concatenate[A, Q], O], /) -> Call[A, O]: ...


class _CallManyDecorator(Protocol):
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
        limit: how many calls and lookups may be in flight at once, in all workers together. If it is left out, each worker has at most 100
            in flight.
        rate: how many calls and lookups may be begun in a span of time, in all workers together, such as `Rate(10, timedelta(seconds=1))`.
        limit_per: like `limit`, but for each tenant separately. The tenant is the value of the column that a reaction names by `per`.
        rate_per: like `rate`, but for each tenant.
        not_done: the exceptions that prove that the service did not act: exception types, dotted paths of types, and functions that return
            True for an exception that proves it. Ready-made lists: `not_done.HTTPX`, `not_done.REQUESTS`, `not_done.SMTPLIB`,
            `not_done.BOTOCORE`.
        client: a function that makes a client, which must be a context manager. The worker enters the client as a context manager, and
            passes it to parameters named `client`.

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
        if not _is_printable_name(name):
            raise DeclarationError(f"ExternalService({name!r}): give it a name of printable characters")
        for option, given in (("limit", limit), ("limit_per", limit_per)):
            if given is not None and not _is_positive_int(given):
                without = "100 in each worker" if option == "limit" else "no such limit"
                raise DeclarationError(
                    f"ExternalService({name!r}, {option}={given!r}): at least 1 call must be possible; leave it out for {without}"
                )
        for option, said in (("rate", rate), ("rate_per", rate_per)):
            _check_rate(f"ExternalService({name!r}, {option}={said!r})", said)
        if client is not None and not isinstance(client, type) and (hasattr(client, "__aenter__") or hasattr(client, "__enter__")):
            raise DeclarationError(
                f"ExternalService({name!r}, client=...): that client was made at import, and would be bound to another event loop; give a"
                " function that makes it, as in client=lambda: httpx.AsyncClient()"
            )
        if client is not None and not callable(client):
            raise DeclarationError(f"ExternalService({name!r}, client={client!r}): give a function that makes the client, such as a lambda")
        self.spec = ServiceSpec(name, limit, validate_not_done.check_not_done_list(not_done), client, rate, limit_per, rate_per)

    @property
    def name(self) -> str:
        """The name of the service in logs and lists."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"<service {self.name}>"

    @decorator_forms.show_example_on_misuse("@bank.call(in_doubt=InDoubt.hold()), or another policy,")
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
    ) -> _CallDecorator:
        """Declare a call to this service, as a decorator of the function that makes it.

        The function may be sync or async. Its first argument is a read-only snapshot of the record, or what `prepare` made of the record.

        Args:
            in_doubt: what is done if it is unknown whether a call was made: `InDoubt.repeat()`, `InDoubt.same_key()`, `InDoubt.lookup()` or
                `InDoubt.hold()`.
            timeout: how long the call may take. A call that takes longer is in doubt.
            retry: when a failed call is tried again.
            load: a list of SQLAlchemy loader options for the snapshot, such as `[selectinload(Order.items)]`.
            stop_when_overtaken: cancel the call when the condition no longer holds. Only for an async call under `InDoubt.repeat()`.
            name: the name of the call in stored attempts; the function's name if left out. If you rename the function, and it still makes
                the same call, give its old name here: an attempt in doubt that was begun under another name is held for a person.
            answers_for: names of other services that an older version of the reaction called. The lookup of this call can also tell what
                became of calls to these services that are still in doubt.

        Raises:
            DeclarationError: the call, as declared, cannot keep what its policy promises.
        """

        def declare(call: Any, /) -> Call[Any, Any]:
            read = signature.read_signature(
                call, "the call", ["the record (or what `prepare` makes)"], _parameters_supplied_by(_TO_CALL, self.spec)
            )
            _check_call_options(read, in_doubt, timeout, retry)
            loads = loader_options.check_options(read.what, load)
            if in_doubt.kind == "same_key" and "key" not in read.function.wants.values():
                raise DeclarationError(
                    f"{read.what}: under InDoubt.same_key() it must take the key and send it: add a parameter `key: IdempotencyKey`"
                )
            if stop_when_overtaken and (in_doubt.kind != "repeat" or not read.function.is_async):
                raise DeclarationError(
                    f"{read.what}: stop_when_overtaken= is for async calls under InDoubt.repeat(): stopped elsewhere it would be in doubt"
                )
            made = CallSpec(self.spec, read.function, in_doubt, timeout, retry, loads, stop_when_overtaken)
            made.name, made.answers_for = _check_call_name(read, name), _check_service_names(read, answers_for)
            made.outcome_type, made.argument_type = _outcome_type(read.returns), read.first[0]
            return Call(made)

        return declare

    @decorator_forms.show_example_on_misuse("@bank.call_many(size=10, in_doubt=InDoubt.hold()), or another policy,")
    def call_many(
        self,
        *,
        size: int,
        in_doubt: InDoubt,
        timeout: timedelta = _SECONDS_30,
        retry: Retry = _RETRY,
        name: str | None = None,
        answers_for: Sequence[str] = (),
    ) -> _CallManyDecorator:
        """Declare one call that is made for many records together, with an attempt for each record.

        The function takes a sequence of records. It returns a mapping from the records to their outcomes, or a list of the outcomes in the
        same order. For a record on which the service surely did not act, the outcome is `NotDone`. The call is in doubt for each record
        that is missing from the mapping, and for all records if the list has another length. A parameter annotated `keys:
        Sequence[IdempotencyKey]` gets the keys, in the order of the records.

        Args:
            size: the largest number of records in one call.
            in_doubt: what is done for a record if it is unknown whether its call was made, as for `call`.
            timeout: how long one call for all its records may take.
            retry: when a failed record is tried again; each record counts its own tries.
            name: the name of the call in stored attempts, as for `call`.
            answers_for: names of other services. The lookup can also tell what became of calls to these services, as for `call`.

        Raises:
            DeclarationError: the call, as declared, cannot keep what its policy promises.
        """
        if not _is_positive_int(size):
            raise DeclarationError(f"call_many(size={size!r}): at least 1 record is in a call")

        def declare(call: Any, /) -> Call[Any, Any]:
            read = signature.read_signature(
                call, "the call", ["a sequence of the records"], _parameters_supplied_by(_TO_CALL_MANY, self.spec)
            )
            _check_call_options(read, in_doubt, timeout, retry)
            keys = next((name for name, supply in read.function.wants.items() if supply == "keys"), None)
            if in_doubt.kind == "same_key" and keys is None:
                raise DeclarationError(
                    f"{read.what}: under InDoubt.same_key() it must take the keys and send them: add a parameter `keys:"
                    " Sequence[IdempotencyKey]`"
                )
            made = CallSpec(self.spec, read.function, in_doubt, timeout, retry, many=size, wants_keys=keys)
            made.name, made.answers_for = _check_call_name(read, name), _check_service_names(read, answers_for)
            made.outcome_type, made.argument_type = _outcome_type_of_many(read.returns), _element_type(read.first[0])
            return Call(made)

        return declare


def _is_printable_name(given: Any) -> bool:
    return isinstance(given, str) and bool(given.strip()) and given.isprintable()


def _check_call_name(read: signature.Signature, given: Any) -> str:
    if given is None:
        return read.function.plain_name
    if not _is_printable_name(given):
        raise DeclarationError(f"{read.what}: name={given!r}: give it a name of printable characters")
    return str(given)


def _check_service_names(read: signature.Signature, given: Any) -> tuple[str, ...]:
    names = () if isinstance(given, str) else tuple(given)
    if (given and not names) or not all(_is_printable_name(one) for one in names):
        raise DeclarationError(f"{read.what}: answers_for={given!r}: give a list of names of services, such as answers_for=['stripe']")
    return names


def _is_positive_int(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= 1


def _check_rate(what: str, rate: Any) -> None:
    if rate is None:
        return
    if not isinstance(rate, Rate):
        raise DeclarationError(f"{what}: give a Rate, such as Rate(10, timedelta(seconds=1)) for ten calls in any second")
    if not _is_positive_int(rate.times):
        raise DeclarationError(f"{what}: at least 1 call must be possible in the span: Rate(times=1, ...) or more")
    each: Any = rate.each
    if not isinstance(each, timedelta) or not timedelta() < each <= LONGEST_SPAN:
        raise DeclarationError(
            f"{what}: give a span of more than zero and {LONGEST_SPAN.days} days at most, such as each=timedelta(minutes=1)"
        )


def _parameters_supplied_by(all_of: Sequence[str], service: ServiceSpec) -> tuple[str, ...]:
    return tuple(one for one in all_of if one != "client" or service.client is not None)


def _check_call_options(read: signature.Signature, in_doubt: Any, timeout: Any, retry: Any) -> None:
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
            f"{read.what}: the service keeps its key for {in_doubt.kept_for}, and a second call with this key could arrive up to"
            f" {timeout + MARGIN + wait} after the first began (timeout + 5 s + settle_after), so no second call would ever be made:"
            " shorten the timeout or settle_after"
        )


def _check_can_return_absent(read: signature.Signature) -> None:
    if read.returns is inspect.Parameter.empty:
        raise DeclarationError(f"{read.what}: annotate what it returns, as in -> Receipt | Absent | Unknown: None could mean an outcome")
    if isinstance(read.returns, signature.Unresolved):
        says = "Absent" in read.returns.text
    else:
        said = signature.union_members(read.returns)
        says = any(_can_be_absent(one) for one in said)
    if not says:
        raise DeclarationError(
            f"{read.what} is annotated so that it cannot say Absent: annotate it -> Receipt | Absent | Unknown, and return Absent() where"
            " the service did not act; None or False would be taken for an outcome"
        )


def _annotation_includes_none(returns: Any) -> bool:
    return not isinstance(returns, signature.Unresolved) and type(None) in [*map(_none_as_none_type, signature.union_members(returns))]


def _outcome_can_be_none(outcome: Any) -> bool:
    """Whether the call's annotation allows None as an outcome."""
    return outcome is not Any and _annotation_includes_none(outcome)


def _none_as_none_type(member: Any) -> Any:
    return type(None) if member is None else member


def _can_be_absent(member: Any) -> bool:
    kind = typing.get_args(member)[0] if typing.get_origin(member) is type else member
    return any(one in (Absent, Any) for one in signature.union_members(kind))


def _outcome_type(returns: Any) -> Any:
    if returns is inspect.Parameter.empty or isinstance(returns, signature.Unresolved):
        return Any
    if typing.get_origin(returns) in (Awaitable, typing.Awaitable):
        return typing.get_args(returns)[0]
    return returns


def _element_type(annotation: Any) -> Any:
    arguments = typing.get_args(signature.without_annotated(annotation))
    return arguments[0] if len(arguments) == 1 else inspect.Parameter.empty


def _outcome_type_of_many(returns: Any) -> Any:
    arguments = typing.get_args(signature.without_annotated(_outcome_type(returns)))
    if not arguments:
        return Any
    return _remove_from_union(arguments[-1], (NotDone,))


def _remove_from_union(annotation: Any, said: Collection[Any]) -> Any:
    """Return the annotation without the members of the union that are in `said`, such as Absent. Returns Any if no member is left."""
    kept = [one for one in signature.union_members(annotation) if one not in said]
    return typing.Union[tuple(kept)] if kept else Any  # noqa: UP007 - the members are known only when this runs
