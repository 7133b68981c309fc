"""The transport over RabbitMQ: a fanout exchange that is not durable, with one exclusive queue for each subscriber.

A queue is deleted with its connection, and a restart deletes the exchange and the queues. The transport is refused if the exchange is
durable, or if a durable queue or exchange is bound to it. Only RabbitMQ's management API shows what is bound to an exchange.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.transport.port import Finding
from groundstate.transport.reconnecting import ReconnectingTransport, abort_if_slower_than

with suppress(ImportError):  # without pika, from_url.py raises an error that names the cure, before this module is used
    import pika
    from pika.exceptions import ChannelClosedByBroker

ASKED_WITHIN_S = 2.0  # seconds that one request to the management API may take
ANSWERS_WITHIN_S = 5.0  # seconds that RabbitMQ may take for an operation for which pika has no timeout
LOOK_S = 5.0  # seconds between checks that the exchange still exists
UNHEARD_MOST = 1_000  # maximum number of hints in a subscriber's queue; RabbitMQ then drops the oldest hint for each new one
NOT_FOUND, REFUSED, NOT_AS_OURS = 404, 403, 406  # reply codes of AMQP; 404 is also the status code of HTTP
_MANAGED = {"amqp": "http://{}:15672", "amqps": "https://{}:15671"}
_UNSEEN = (
    "allow the query: `rabbitmq-plugins enable rabbitmq_management`, and `rabbitmqctl set_user_tags <user> management` (for another"
    " address: amqp://...?management=http://host:15672); or, if you know that nothing is stored, use `groundstate run"
    " --trust-transport` or `app.start(trust_transport=True)`"
)


class AmqpTransport(ReconnectingTransport):
    """The transport over RabbitMQ, with a fanout exchange that has the name of the subject.

    url: an amqp:// or amqps:// URL as pika reads it. Its option `management=`, which pika does not have, is the URL of the management API.
    """

    def __init__(self, url: str) -> None:
        super().__init__("amqp", _Driver(url))


class _Driver:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        asked = dict(parse_qsl(parts.query))
        managed = asked.pop("management", None)
        self._url = parts._replace(query=urlencode(asked)).geturl()
        by_pika = self._parameters()
        host = f"[{by_pika.host}]" if ":" in by_pika.host else by_pika.host
        of_user = by_pika.credentials
        self._management = _Management(managed or _MANAGED[parts.scheme.lower()].format(host), f"{of_user.username}:{of_user.password}")

    def findings(self, subject: str) -> list[Finding]:
        with self._temporary_connection() as connection:
            try:
                connection.channel().exchange_declare(subject, passive=True)
                _declare_exchange(connection.channel(), subject)
            except ChannelClosedByBroker as error:
                if error.reply_code == NOT_FOUND:
                    return []  # the exchange does not exist, so no queue is bound to it
                if error.reply_code == NOT_AS_OURS:
                    cure = f"`rabbitmqadmin delete exchange name={subject}`"
                    return [Finding(True, f"the exchange {subject} is there already, and not as a hint's: {error.reply_text}", cure)]
                if error.reply_code == REFUSED:
                    return [Finding(False, f"the exchange {subject} cannot be seen ({error.reply_text})", _UNSEEN)]
                raise
        return self._management.durable_bindings(self._parameters().virtual_host, subject)

    def connect_subscriber(self, subject: str) -> _Subscriber:
        return _Subscriber(self._parameters(heartbeat_s=10), subject)

    def connect_publisher(self, subject: str) -> _Publisher:
        return _Publisher(self._parameters(), subject)

    @contextmanager
    def _temporary_connection(self) -> Iterator[Any]:
        connection = _Connection(self._parameters())
        with abort_if_slower_than(ANSWERS_WITHIN_S, connection.abort):
            try:
                yield connection.connection
            finally:
                connection.close()

    def _parameters(self, heartbeat_s: int = 0) -> Any:
        """Return pika's connection parameters. heartbeat_s: the interval of AMQP heartbeats in seconds; 0 turns heartbeats off.

        Heartbeats must be off for a connection that has no thread to answer them. The publisher needs no heartbeats, since its connection
        is closed when the subscriber's connection is lost.
        """
        found = pika.URLParameters(self._url)
        found.heartbeat = heartbeat_s
        found.connection_attempts, found.socket_timeout, found.stack_timeout, found.blocked_connection_timeout = 1, 5, 6, 5
        found.tcp_options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
        found.client_properties = {"connection_name": "groundstate hints"}
        return found


def _declare_exchange(channel: Any, subject: str) -> None:
    channel.exchange_declare(subject, "fanout", durable=False, auto_delete=True)


class _Management:
    """A client of RabbitMQ's HTTP management API, which shows what is bound to an exchange. Raises ValueError if the URL is unusable."""

    def __init__(self, url: str, user: str) -> None:
        self._place = urlsplit(url)
        if self._place.scheme not in {"http", "https"} or not self._place.hostname:
            raise ValueError
        self._at = f"{self._place.scheme}://{self._place.hostname}:{self._place.port}"  # `.port` raises ValueError if it is no number
        self._user = base64.b64encode(user.encode()).decode()

    def durable_bindings(self, vhost: str, exchange: str) -> list[Finding]:
        """Return one Finding for each durable queue or exchange that receives messages of this exchange.

        A queue or exchange counts if it receives them directly or through other exchanges.

        If the API cannot be read, return one Finding that says so.
        """
        place = quote(vhost, safe="")
        durable, seen, ahead = [], set(), [exchange]
        try:
            while ahead:
                name = ahead.pop()
                seen.add(name)
                for one in self._get_json(f"/api/exchanges/{place}/{quote(name, safe='')}/bindings/source"):
                    kind, what = one["destination_type"], one["destination"]
                    if self._get_json(f"/api/{kind}s/{place}/{quote(what, safe='')}?columns=durable").get("durable"):
                        cure = f"`rabbitmqadmin --vhost={vhost} delete {kind} name={what}`, or unbind it from {name}"
                        durable.append(Finding(True, f"the durable {kind} {what} is bound to the exchange {name}", cure))
                    elif kind == "exchange" and what not in seen:
                        ahead.append(what)
        except (OSError, HTTPException, ssl.SSLError, ValueError, KeyError, PermissionError) as error:
            return [Finding(False, f"it cannot be seen what is bound to the exchange {exchange} ({self._at}: {error})", _UNSEEN)]
        return durable

    def _get_json(self, path: str) -> Any:
        kind = HTTPSConnection if self._place.scheme == "https" else HTTPConnection
        connection = kind(self._place.hostname or "", self._place.port, timeout=ASKED_WITHIN_S)
        try:
            connection.request("GET", self._place.path.rstrip("/") + path, headers={"Authorization": f"Basic {self._user}"})
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status == NOT_FOUND:  # the queue or exchange was deleted after an earlier request had named it
            return {}
        if answer.status != 200:
            raise PermissionError(f"{answer.status} {answer.reason}")
        return json.loads(said)


class _Connection:
    """One connection to RabbitMQ, which another thread may break off by `abort`."""

    def __init__(self, parameters: Any) -> None:
        self.connection = pika.BlockingConnection(parameters)

    def abort(self) -> None:
        with suppress(AttributeError, OSError):  # the connection may be closed already; pika's socket is a private attribute
            socket.socket.shutdown(self.connection._impl._transport._sock, socket.SHUT_RDWR)  # noqa: SLF001

    def close(self) -> None:
        with suppress(Exception):
            self.connection.close()


class _Subscriber(_Connection):
    def __init__(self, parameters: Any, subject: str, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(parameters)
        self._clock = clock
        self._subject = subject
        self._unheard: list[bytes] = []
        try:
            with abort_if_slower_than(ANSWERS_WITHIN_S, self.abort):
                self._channel = self.connection.channel()
                _declare_exchange(self._channel, subject)
                limits = {"x-max-length": UNHEARD_MOST}
                queue = self._channel.queue_declare("", exclusive=True, auto_delete=True, arguments=limits).method.queue
                self._channel.queue_bind(queue, subject)
                self._channel.add_on_cancel_callback(lambda _: self.close())  # RabbitMQ cancels the consumer when its queue is deleted
                self._channel.basic_consume(queue, self._on_message, auto_ack=True, exclusive=True)
        except BaseException:
            self.close()
            raise
        self._look_at = self._clock.monotonic() + LOOK_S

    def _on_message(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        self._unheard.append(body)

    def receive(self, wait_s: float) -> Sequence[bytes]:
        if self._clock.monotonic() >= self._look_at:  # RabbitMQ does not report when the exchange is deleted
            self._look_at = self._clock.monotonic() + LOOK_S
            with abort_if_slower_than(ANSWERS_WITHIN_S, self.abort):
                self._channel.exchange_declare(self._subject, passive=True)
        self.connection.process_data_events(wait_s)
        heard, self._unheard = self._unheard, []
        return heard


class _Publisher(_Connection):
    def __init__(self, parameters: Any, subject: str) -> None:
        super().__init__(parameters)
        self._subject = subject
        with abort_if_slower_than(ANSWERS_WITHIN_S, self.abort):
            self._channel = self.connection.channel()

    def publish(self, hints: Sequence[bytes]) -> None:
        """Publish the hints as messages that RabbitMQ keeps only in memory.

        If RabbitMQ refuses a message, it closes the channel, so that the next call of this method raises.
        """
        for hint in hints:
            self._channel.basic_publish(self._subject, "", hint)
        self.connection.process_data_events(0)
