"""The transport over RabbitMQ: a fanout exchange that is not durable, with one exclusive queue for each listener, deleted with its
connection.

Exchange and queues are in memory and gone after a restart. The transport is refused if the exchange, or another queue or exchange that is
bound to it, is durable. Only RabbitMQ's management API shows which are bound.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from groundstate.transport.port import Finding
from groundstate.transport.reconnecting import ReconnectingTransport, cut_if_slower_than

with suppress(ImportError):  # from_url.py raises, with the cure, before anything here is used
    import pika
    from pika.exceptions import ChannelClosedByBroker

ASKED_WITHIN_S = 2.0  # seconds that one request to the management API may take
ANSWERS_WITHIN_S = 5.0  # seconds that RabbitMQ may take for operations for which pika has no timeout
LOOK_S = 5.0  # seconds between checks that the exchange still exists
UNHEARD_MOST = 1_000  # hints in the queue of a slow listener; beyond this RabbitMQ drops the oldest
NOT_FOUND, REFUSED, NOT_AS_OURS = 404, 403, 406  # reply codes of AMQP; 404 also of HTTP
_MANAGED = {"amqp": "http://{}:15672", "amqps": "https://{}:15671"}
_UNSEEN = (
    "let it be asked: `rabbitmq-plugins enable rabbitmq_management`, and `rabbitmqctl set_user_tags <user> management` (where it is"
    " elsewhere: amqp://...?management=http://host:15672), or say that you know it: `groundstate run --trust-transport`,"
    " `app.start(trust_transport=True)`"
)


class AmqpTransport(ReconnectingTransport):
    """The transport over RabbitMQ, with a fanout exchange named as the subject.

    `url` is an amqp:// or amqps:// URL of pika; its option `management=` is the URL of the management API.
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
        with self._connected() as connection:
            try:
                connection.channel().exchange_declare(subject, passive=True)
                _declare(connection.channel(), subject)
            except ChannelClosedByBroker as error:
                if error.reply_code == NOT_FOUND:
                    return []  # the exchange does not exist, so no queue is bound to it
                if error.reply_code == NOT_AS_OURS:
                    cure = f"`rabbitmqadmin delete exchange name={subject}`"
                    return [Finding(True, f"the exchange {subject} is there already, and not as a hint's: {error.reply_text}", cure)]
                if error.reply_code == REFUSED:
                    return [Finding(False, f"the exchange {subject} cannot be seen ({error.reply_text})", _UNSEEN)]
                raise
        return self._management.bound(self._parameters().virtual_host, subject)

    def listen(self, subject: str) -> _Listening:
        return _Listening(self._parameters(heartbeat_s=10), subject)

    def speak(self, subject: str) -> _Speaking:
        return _Speaking(self._parameters(), subject)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        connection = _Connection(self._parameters())
        with cut_if_slower_than(ANSWERS_WITHIN_S, connection.cut):
            try:
                yield connection.connection
            finally:
                connection.close()

    def _parameters(self, heartbeat_s: int = 0) -> Any:
        """Return pika's connection parameters. `heartbeat_s` is the interval of AMQP heartbeats in seconds; 0 turns them off.

        They are off for connections without a thread that answers them. When the listening connection is lost, the sending one is closed
        too.
        """
        found = pika.URLParameters(self._url)
        found.heartbeat = heartbeat_s
        found.connection_attempts, found.socket_timeout, found.stack_timeout, found.blocked_connection_timeout = 1, 5, 6, 5
        found.tcp_options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
        found.client_properties = {"connection_name": "groundstate hints"}
        return found


def _declare(channel: Any, subject: str) -> None:
    channel.exchange_declare(subject, "fanout", durable=False, auto_delete=True)


class _Management:
    """RabbitMQ's HTTP management API, which shows what is bound to an exchange. Making one raises ValueError if its URL cannot be used."""

    def __init__(self, url: str, user: str) -> None:
        self._place = urlsplit(url)
        if self._place.scheme not in {"http", "https"} or not self._place.hostname:
            raise ValueError
        self._at = f"{self._place.scheme}://{self._place.hostname}:{self._place.port}"  # `.port` raises ValueError unless it is a number
        self._user = base64.b64encode(user.encode()).decode()

    def bound(self, vhost: str, exchange: str) -> list[Finding]:
        """Return a finding for each durable queue or exchange that receives messages of this exchange, also through other exchanges."""
        place = quote(vhost, safe="")
        durable, seen, ahead = [], set(), [exchange]
        try:
            while ahead:
                name = ahead.pop()
                seen.add(name)
                for one in self._get(f"/api/exchanges/{place}/{quote(name, safe='')}/bindings/source"):
                    kind, what = one["destination_type"], one["destination"]
                    if self._get(f"/api/{kind}s/{place}/{quote(what, safe='')}?columns=durable").get("durable"):
                        cure = f"`rabbitmqadmin --vhost={vhost} delete {kind} name={what}`, or unbind it from {name}"
                        durable.append(Finding(True, f"the durable {kind} {what} is bound to the exchange {name}", cure))
                    elif kind == "exchange" and what not in seen:
                        ahead.append(what)
        except (OSError, HTTPException, ssl.SSLError, ValueError, KeyError, PermissionError) as error:
            return [Finding(False, f"it cannot be seen what is bound to the exchange {exchange} ({self._at}: {error})", _UNSEEN)]
        return durable

    def _get(self, path: str) -> Any:
        kind = HTTPSConnection if self._place.scheme == "https" else HTTPConnection
        connection = kind(self._place.hostname or "", self._place.port, timeout=ASKED_WITHIN_S)
        try:
            connection.request("GET", self._place.path.rstrip("/") + path, headers={"Authorization": f"Basic {self._user}"})
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status == NOT_FOUND:  # the queue or exchange was deleted between the two requests
            return {}
        if answer.status != 200:
            raise PermissionError(f"{answer.status} {answer.reason}")
        return json.loads(said)


class _Connection:
    """One connection to RabbitMQ that another thread may cut."""

    def __init__(self, parameters: Any) -> None:
        self.connection = pika.BlockingConnection(parameters)

    def cut(self) -> None:
        with suppress(AttributeError, OSError):  # the connection may be closed already; pika has no public way to its socket
            socket.socket.shutdown(self.connection._impl._transport._sock, socket.SHUT_RDWR)  # noqa: SLF001

    def close(self) -> None:
        with suppress(Exception):
            self.connection.close()


class _Listening(_Connection):
    def __init__(self, parameters: Any, subject: str) -> None:
        super().__init__(parameters)
        self._subject = subject
        self._unheard: list[bytes] = []
        try:
            with cut_if_slower_than(ANSWERS_WITHIN_S, self.cut):
                self._channel = self.connection.channel()
                _declare(self._channel, subject)
                limits = {"x-max-length": UNHEARD_MOST}
                queue = self._channel.queue_declare("", exclusive=True, auto_delete=True, arguments=limits).method.queue
                self._channel.queue_bind(queue, subject)
                self._channel.add_on_cancel_callback(lambda _: self.close())  # RabbitMQ cancels the consumer when its queue is deleted
                self._channel.basic_consume(queue, self._take, auto_ack=True, exclusive=True)
        except BaseException:
            self.close()
            raise
        self._look_at = time.monotonic() + LOOK_S

    def _take(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        self._unheard.append(body)

    def heard(self, wait_s: float) -> Sequence[bytes]:
        if time.monotonic() >= self._look_at:  # RabbitMQ does not report that the exchange was deleted
            self._look_at = time.monotonic() + LOOK_S
            with cut_if_slower_than(ANSWERS_WITHIN_S, self.cut):
                self._channel.exchange_declare(self._subject, passive=True)
        self.connection.process_data_events(wait_s)
        heard, self._unheard = self._unheard, []
        return heard


class _Speaking(_Connection):
    def __init__(self, parameters: Any, subject: str) -> None:
        super().__init__(parameters)
        self._subject = subject
        with cut_if_slower_than(ANSWERS_WITHIN_S, self.cut):
            self._channel = self.connection.channel()

    def say(self, hints: Sequence[bytes]) -> None:
        """Publish the hints as transient messages, held in memory only. If RabbitMQ refuses one it closes the channel, so that the next
        call raises.
        """
        for hint in hints:
            self._channel.basic_publish(self._subject, "", hint)
        self.connection.process_data_events(0)
