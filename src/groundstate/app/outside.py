"""An endpoint, and the calls to it. Declares; makes no call."""

from __future__ import annotations

import inspect
import typing
import warnings
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from groundstate.app import by_options, signature, source, trust
from groundstate.rules.policy import MARGIN, InDoubt, Retry
from groundstate.rules.rate import Rate
from groundstate.rules.reaction import CallSpec, NotDoneWhen, OutsideSpec
from groundstate.values.answers import Absent, NotDone, Unknown
from groundstate.values.errors import DeclarationError, DeclarationWarning

A = TypeVar("A")  # what a call takes: the record, or what `sends` made of it
O = TypeVar("O")  # its outcome  # noqa: E741 - as R and P in the other signatures
Q = ParamSpec("Q")  # what is supplied by annotation

_Found = Absent | Unknown | type[Absent] | type[Unknown]
_FOUND_NOTHING = (Absent, Unknown, type[Absent], type[Unknown], type[Absent | Unknown], type[Unknown | Absent])
_TO_CALL = ("key", "at", "client")
_TO_CALL_MANY = ("keys", "at", "client")
_TO_FIND = ("key", "at", "occurrence", "client")
LONGEST_SPAN = timedelta(days=366)
_SECONDS_30 = timedelta(seconds=30)
_RETRY = Retry()


class Call(Generic[A, O]):
    """A call to the outside, still callable as the function it was made of."""

    DECLARED_AS = (
        "a call to the outside: given as a function it would run with no attempt written before it, and again after each crash. Give it"
        " by call=, as in @app.on(..., call=...) above a handler that takes its outcome"
    )

    def __init__(self, spec: CallSpec) -> None:
        self.spec = spec
        self.__name__ = signature.name_of(spec.function.call)
        self.__doc__ = spec.function.call.__doc__
        self.__wrapped__ = spec.function.call

    def __call__(self, argument: A, /, *args: Any, **supplies: Any) -> Any:
        """Calls the function itself, as a test of it does: nothing is recorded."""
        return self.spec.function.call(argument, *args, **supplies)

    def __repr__(self) -> str:
        return f"<call {self.__name__} to {self.spec.outside.name}>"

    @overload
    def find(self, find: Callable[Concatenate[A, Q], Awaitable[O | _Found]], /) -> None: ...
    @overload
    def find(self, find: Callable[Concatenate[A, Q], O | _Found], /) -> None: ...
    @by_options.with_example("@charge.find, without parentheses,")
    def find(self, find: Any, /) -> None:
        """Declares the question to the outside: what became of this call? It answers with the outcome, `Absent` or `Unknown`.

        It takes what the call takes, and by annotation `key: Key`, `at: Moment`, `occurrence: Occurrence` and the outside's `client`.

        Raises:
            DeclarationError: it cannot say Absent, or the policy lacks `settle_after`.
        """
        spec = self.spec
        if spec.find is not None:
            raise DeclarationError(f"call {self.__name__} has a find already ({spec.find.name})")
        read = signature.read(find, f"call {self.__name__}: its find", ["what the call takes"], _supplied(_TO_FIND, spec.outside))
        _must_say_absent(read)
        if _says_none(read.returns) and not _may_be_none(spec.outcome_type):
            warnings.warn(
                f"call {self.__name__}: its find {read.function.name} is annotated to return None, and None is taken for the outcome of a"
                " call that was made: return Absent() where the outside was not acted on, and Unknown() where it cannot tell; or annotate"
                " the call so that None is an outcome of it",
                DeclarationWarning,
                stacklevel=source.stacklevel(),
            )
        if spec.in_doubt.kind == "same_key" and spec.in_doubt.settle_after is None:
            raise DeclarationError(
                f"call {self.__name__} has a find, which needs to know when Absent can be believed: same_key(kept_for=...,"
                " settle_after=...)"
            )
        if spec.in_doubt.kind in ("hold", "again"):
            warnings.warn(
                f"call {self.__name__}: its find is never asked under {spec.in_doubt.kind}(); choose in_doubt=ask(settle_after=...), or"
                " remove it",
                DeclarationWarning,
                stacklevel=source.stacklevel(),
            )
        spec.find, spec.found_type = read.function, _without(_outcome(read.returns), _FOUND_NOTHING)


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


class Outside:
    """An endpoint: what its calls and finds share.

    Args:
        name: what it is called in logs and lists.
        limit: how many of its calls and finds are under way at once, in all workers together; 100 in each worker where left out.
        rate: how many of its calls and finds are begun in any span of time, in all workers together.
        limit_per: as `limit`, for each value of the `per` column of a reaction: a tenant's endpoint.
        rate_per: as `rate`, for each such value.
        not_done: exceptions after which surely nothing was done: types, dotted paths of such, and functions that are given an exception
            and return True for one; ready-made: `HTTPX`, `REQUESTS`, `SMTPLIB`, `BOTOCORE`.
        client: makes a client, as a context manager; opened in the worker, and given to a parameter named `client`.

    Raises:
        DeclarationError: one of these cannot be meant so.
    """

    def __init__(  # noqa: PLR0913  # an endpoint has these
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
            raise DeclarationError(f"Outside({name!r}): give it a name of printable characters")
        for option, given in (("limit", limit), ("limit_per", limit_per)):
            if given is not None and not _is_count(given):
                without = "100 in each worker" if option == "limit" else "no such limit"
                raise DeclarationError(
                    f"Outside({name!r}, {option}={given!r}): at least 1 call must be possible; leave it out for {without}"
                )
        for option, said in (("rate", rate), ("rate_per", rate_per)):
            _check_rate(f"Outside({name!r}, {option}={said!r})", said)
        if client is not None and not isinstance(client, type) and (hasattr(client, "__aenter__") or hasattr(client, "__enter__")):
            raise DeclarationError(
                f"Outside({name!r}, client=...): that client was made at import, and would be bound to another loop; give what makes it,"
                " as in client=lambda: httpx.AsyncClient()"
            )
        if client is not None and not callable(client):
            raise DeclarationError(f"Outside({name!r}, client={client!r}): give a function that makes the client, such as a lambda")
        self.spec = OutsideSpec(name, limit, trust.checked(not_done), client, rate, limit_per, rate_per)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"<outside {self.name}>"

    @by_options.with_example("@bank.call(in_doubt=hold()), or another policy,")
    def call(  # noqa: PLR0913  # a call has these
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
        """Declares a call: a function, sync or async, of a read-only snapshot of the record or of what `sends` made of it.

        Args:
            in_doubt: what becomes of a call that may have been made: `again()`, `same_key()`, `ask()` or `hold()`.
            timeout: how long it may take; later it is in doubt.
            retry: when it is tried again.
            load: SQLAlchemy loader options for the snapshot, such as `selectinload(Order.items)`.
            stop_when_overtaken: an async call under `again()` is cancelled when the condition no longer holds.
            name: by which attempts know it; the function's name where left out. A function that is renamed, and calls the same, keeps
                its old name here: a doubt that was begun under another name is held for a person.
            answers_for: names of outsides: its find knows of calls to them as well, which earlier code of the reaction has left in doubt.

        Raises:
            DeclarationError: the call could not keep what its policy promises.
        """

        def declare(call: Any, /) -> Call[Any, Any]:
            read = signature.read(call, "the call", ["the record (or what `sends` makes)"], _supplied(_TO_CALL, self.spec))
            _check(read, in_doubt, timeout, retry)
            if in_doubt.kind == "same_key" and "key" not in read.function.wants.values():
                raise DeclarationError(f"{read.what}: under same_key() it must take the key and send it: add a parameter `key: Key`")
            if stop_when_overtaken and (in_doubt.kind != "again" or not read.function.is_async):
                raise DeclarationError(
                    f"{read.what}: stop_when_overtaken= is for async calls under again(): stopped elsewhere it would be in doubt"
                )
            made = CallSpec(self.spec, read.function, in_doubt, timeout, retry, tuple(load), stop_when_overtaken)
            made.name, made.answers_for = _call_name(read, name), _outside_names(read, answers_for)
            made.outcome_type, made.argument_type = _outcome(read.returns), read.first[0]
            return Call(made)

        return declare

    @by_options.with_example("@bank.call_many(size=10, in_doubt=hold()), or another policy,")
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
        """Declares one outside call for many records, an attempt each. A record missing from the answer is in doubt.

        It takes a sequence of records and returns a mapping from them, or their outcomes in the same order; `NotDone` for one that
        surely was not done. A list of another length says nothing of any of them. By annotation it takes `keys: Sequence[Key]`, in the
        records' order.

        Args:
            size: how many records one call is made for, at most.
            in_doubt: as for `call`.
            timeout: as for `call`, for all of them.
            retry: as for `call`, for each.
            name: as for `call`.
            answers_for: as for `call`.

        Raises:
            DeclarationError: the call could not keep what its policy promises.
        """
        if not _is_count(size):
            raise DeclarationError(f"call_many(size={size!r}): at least 1 record is in a call")

        def declare(call: Any, /) -> Call[Any, Any]:
            read = signature.read(call, "the call", ["a sequence of the records"], _supplied(_TO_CALL_MANY, self.spec))
            _check(read, in_doubt, timeout, retry)
            keys = next((name for name, supply in read.function.wants.items() if supply == "keys"), None)
            if in_doubt.kind == "same_key" and keys is None:
                raise DeclarationError(
                    f"{read.what}: under same_key() it must take the keys and send them: add a parameter `keys: Sequence[Key]`"
                )
            made = CallSpec(self.spec, read.function, in_doubt, timeout, retry, many=size, wants_keys=keys)
            made.name, made.answers_for = _call_name(read, name), _outside_names(read, answers_for)
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


def _outside_names(read: signature.Signature, given: Any) -> tuple[str, ...]:
    names = () if isinstance(given, str) else tuple(given)
    if (given and not names) or not all(_is_name(one) for one in names):
        raise DeclarationError(f"{read.what}: answers_for={given!r}: give a list of names of outsides, such as answers_for=['stripe']")
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


def _supplied(all_of: Sequence[str], outside: OutsideSpec) -> tuple[str, ...]:
    return tuple(one for one in all_of if one != "client" or outside.client is not None)


def _check(read: signature.Signature, in_doubt: Any, timeout: Any, retry: Any) -> None:
    if not isinstance(in_doubt, InDoubt):
        raise DeclarationError(f"{read.what}: in_doubt={in_doubt!r}: choose again(), same_key(...), ask(...) or hold()")
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
    """Whether None is an outcome of the call; Any, where it does not say what it returns."""
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
    """The type of the outcome alone, without what else is said; Any, where nothing is left."""
    kept = [one for one in signature.members(annotation) if one not in said]
    return typing.Union[tuple(kept)] if kept else Any  # noqa: UP007 - of members that are known here alone
