"""From a URL to the transport for it. Connects to nothing, and shows no password in what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from groundstate.transport.memory import MemoryTransport
from groundstate.transport.port import Transport
from groundstate.values.errors import DeclarationError

_UNREADABLE = "transport: its URL cannot be read: write nats://user:password@host:4222, with @ : / in a password as %40 %3A %2F"
_LIBRARIES = {"postgres": ("psycopg", "postgres"), "nats": ("nats", "nats"), "redis": ("redis", "redis"), "amqp": ("pika", "rabbitmq")}


def transport_of(url: str) -> Transport:
    """The transport that a URL names, not opened.

    Raises:
        DeclarationError: no transport has such a URL, or the library for it is not installed.
    """
    scheme, colon, _ = url.partition(":")
    made = _KINDS.get(scheme.lower())
    if not colon or made is None:
        known = ", ".join(f"{one}:" for one in ("memory", "postgresql", "nats", "tls", "redis", "rediss", "unix", "amqp", "amqps"))
        shown = f"{scheme}:" if colon else "it"
        raise DeclarationError(f"transport: {shown} names none. A URL begins with one of {known}; as in nats://localhost:4222")
    try:
        for one in url.split(","):
            _ = urlsplit(one).port  # a slash in a password ends the place too early
        return made(url)
    except ValueError:
        raise DeclarationError(_UNREADABLE) from None  # what was given may hold a password


def _memory(url: str) -> Transport:
    return MemoryTransport(url.partition(":")[2])


def _postgres(url: str) -> Transport:
    rest = url.partition("://")[2]
    made: Transport = _needed("postgres").of_url(f"postgresql://{rest}")
    return made


def _nats(url: str) -> Transport:
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
