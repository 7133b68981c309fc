"""Makes the transport for a URL. It does not connect, and its error messages show no password."""

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
_NO_URL = (ValueError, TypeError, LookupError, AttributeError, SyntaxError)  # errors of client libraries for a URL they cannot read
_LIBRARIES = {"postgres": ("psycopg", "postgres"), "nats": ("nats", "nats"), "redis": ("redis", "redis"), "amqp": ("pika", "rabbitmq")}


def make_transport(url: object) -> Transport:
    """Return the transport for a URL; it is not opened yet.

    Raises:
        DeclarationError: `url` is no string, begins with no known scheme or cannot be read, or the library for its scheme is missing.
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
        raise _unreadable_url_error(scheme)
    try:
        return made(url)
    except StoreRefusedError as error:  # the URL has an option of asyncpg that libpq does not have
        raise DeclarationError(f"transport: {error}") from None
    except _NO_URL:
        raise _unreadable_url_error(scheme, _unreadable_options(url, made)) from None


def _ports_are_numbers(url: str) -> bool:
    """Return whether each port in the comma-separated URLs is a number. A port that is no number comes from a slash in the password."""
    try:
        for one in url.split(","):
            _ = urlsplit(one).port
    except ValueError:
        return False
    return True


def _unreadable_url_error(scheme: str, odd: Sequence[str] = ()) -> DeclarationError:
    """Return the error for a URL that cannot be read. Its text shows no value from the URL, since that may be a password.

    odd: the names of the URL's options that cannot be read; the text contains these names.
    """
    if odd:
        return DeclarationError(f"transport: in its URL {', '.join(f'{one}=' for one in odd)} cannot be read: leave it out, or mend it")
    example = next(example for begin, example in _EXAMPLES.items() if scheme.startswith(begin))
    return DeclarationError(f"transport: its URL cannot be read: write {example}, with @ : / in a password as %40 %3A %2F")


def _unreadable_options(url: str, made: Callable[[str], Transport]) -> list[str]:
    """Return the names of the URL's options that cannot be read. Each option is tried in a URL without the other options."""
    place, _, query = url.partition("?")
    if "@" in query or not _can_url_be_read(made, place):  # an @ after the ? shows that the ? is part of the password
        return []
    return [
        name
        for name, value in parse_qsl(query)
        if name.isidentifier() and not _can_url_be_read(made, f"{place}?{urlencode({name: value})}")
    ]


def _can_url_be_read(made: Callable[[str], Transport], url: str) -> bool:
    try:
        made(url)
    except _NO_URL:
        return False
    return True


def _make_memory(url: str) -> Transport:
    return MemoryTransport(url.partition(":")[2])


def _make_postgres(url: str) -> Transport:
    scheme, _, rest = url.partition("://")
    made: Transport = _import_transport("postgres").make_transport(
        f"postgresql://{rest}", by_asyncpg=scheme.lower() == "postgresql+asyncpg"
    )
    return made


def _make_nats(url: str) -> Transport:
    if not urlsplit(url).netloc:
        raise ValueError(url)  # unlike other transports, NATS has no default address
    made: Transport = _import_transport("nats").NatsTransport(url)
    return made


def _make_redis(url: str) -> Transport:
    made: Transport = _import_transport("redis").RedisTransport(url)
    return made


def _make_amqp(url: str) -> Transport:
    made: Transport = _import_transport("amqp").AmqpTransport(url)
    return made


def _import_transport(kind: str) -> Any:
    library, extra = _LIBRARIES[kind]
    try:
        import_module(library)
    except ImportError as error:
        message = f"the transport needs a library that cannot be imported ({error}): pip install 'groundstate[{extra}]'"
        raise DeclarationError(message) from error
    return import_module(f"groundstate.transport.{kind}")


_KINDS: dict[str, Callable[[str], Transport]] = {
    "memory": _make_memory,
    "postgresql": _make_postgres,
    "postgres": _make_postgres,
    **{f"postgresql+{driver}": _make_postgres for driver in ("psycopg", "psycopg_async", "psycopg2", "asyncpg")},
    "nats": _make_nats,
    "tls": _make_nats,
    "redis": _make_redis,
    "rediss": _make_redis,
    "unix": _make_redis,
    "amqp": _make_amqp,
    "amqps": _make_amqp,
}
