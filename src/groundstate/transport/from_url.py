"""Makes the transport that a URL names. It connects to nothing, and its error messages show no password."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from groundstate.transport.memory import MemoryTransport
from groundstate.transport.port import Transport
from groundstate.values.errors import DeclarationError, StoreRefusedError

_EXAMPLES = {
    "postgres": "postgresql://user:password@host:5432/name",
    "nats": "nats://user:password@host:4222",
    "tls": "tls://user:password@host:4222",
    "redis": "redis://user:password@host:6379",
    "unix": "unix:///run/redis.sock",
    "amqp": "amqp://user:password@host:5672/%2F",
}
_NO_URL = (ValueError, TypeError, LookupError, AttributeError, SyntaxError)  # raised by client libraries for a URL that they cannot read
_LIBRARIES = {"postgres": ("psycopg", "postgres"), "nats": ("nats", "nats"), "redis": ("redis", "redis"), "amqp": ("pika", "rabbitmq")}


def transport_of(url: object) -> Transport:
    """Return the transport that a URL names, without opening it.

    Raises:
        DeclarationError: `url` is no string, names no known transport or cannot be read, or the library for the transport is not installed.
    """
    known = ", ".join(f"{one}:" for one in ("memory", "postgresql", "nats", "tls", "redis", "rediss", "unix", "amqp", "amqps"))
    cure = f"A URL begins with one of {known}; as in nats://localhost:4222"
    if not isinstance(url, str):
        raise DeclarationError(f"transport: {type(url).__name__} is no URL. {cure}")
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    made = _KINDS.get(scheme)
    if not colon or made is None:
        shown = f"{scheme}:" if colon else "it"
        raise DeclarationError(f"transport: {shown} names none. {cure}")
    if scheme != "memory" and not (rest.startswith("//") and _ports_are_numbers(url)):
        raise _unreadable(scheme)
    try:
        return made(url)
    except StoreRefusedError as error:  # an option of asyncpg that libpq does not have
        raise DeclarationError(f"transport: {error}") from None
    except _NO_URL:
        raise _unreadable(scheme, _odd_options(url, made)) from None


def _ports_are_numbers(url: str) -> bool:
    """Whether each URL has a numeric port or none. A port that is no number is the sign of an unescaped slash in the password."""
    try:
        for one in url.split(","):
            _ = urlsplit(one).port
    except ValueError:
        return False
    return True


def _unreadable(scheme: str, odd: Sequence[str] = ()) -> DeclarationError:
    """Return the error for a URL that cannot be read. It repeats only the names of the options `odd`, since the URL may hold a password."""
    if odd:
        return DeclarationError(f"transport: in its URL {', '.join(f'{one}=' for one in odd)} cannot be read: leave it out, or mend it")
    example = next(example for begin, example in _EXAMPLES.items() if scheme.startswith(begin))
    return DeclarationError(f"transport: its URL cannot be read: write {example}, with @ : / in a password as %40 %3A %2F")


def _odd_options(url: str, made: Callable[[str], Transport]) -> list[str]:
    """Return the names of the URL's options that cannot be read, each tried without the others."""
    place, _, query = url.partition("?")
    if "@" in query or not _is_read(made, place):  # the password has an unescaped ?
        return []
    return [name for name, value in parse_qsl(query) if name.isidentifier() and not _is_read(made, f"{place}?{urlencode({name: value})}")]


def _is_read(made: Callable[[str], Transport], url: str) -> bool:
    try:
        made(url)
    except _NO_URL:
        return False
    return True


def _memory(url: str) -> Transport:
    return MemoryTransport(url.partition(":")[2])


def _postgres(url: str) -> Transport:
    scheme, _, rest = url.partition("://")
    made: Transport = _needed("postgres").of_url(f"postgresql://{rest}", by_asyncpg=scheme.lower() == "postgresql+asyncpg")
    return made


def _nats(url: str) -> Transport:
    if not urlsplit(url).netloc:
        raise ValueError(url)  # there is no default address, unlike for the other transports
    made: Transport = _needed("nats").NatsTransport(url)
    return made


def _redis(url: str) -> Transport:
    made: Transport = _needed("redis").RedisTransport(url)
    return made


def _amqp(url: str) -> Transport:
    made: Transport = _needed("amqp").AmqpTransport(url)
    return made


def _needed(kind: str) -> Any:
    library, extra = _LIBRARIES[kind]
    try:
        import_module(library)
    except ImportError as error:
        message = f"the transport needs a library that cannot be imported ({error}): pip install 'groundstate[{extra}]'"
        raise DeclarationError(message) from error
    return import_module(f"groundstate.transport.{kind}")


_KINDS: dict[str, Callable[[str], Transport]] = {
    "memory": _memory,
    "postgresql": _postgres,
    "postgres": _postgres,
    **{f"postgresql+{driver}": _postgres for driver in ("psycopg", "psycopg_async", "psycopg2", "asyncpg")},
    "nats": _nats,
    "tls": _nats,
    "redis": _redis,
    "rediss": _redis,
    "unix": _redis,
    "amqp": _amqp,
    "amqps": _amqp,
}
