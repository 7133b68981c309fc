"""The transport over Redis pub/sub. It refuses a Redis server that writes data to disk, although Redis never writes pub/sub messages.

Such a server restores its data after a crash. Without the refusal, a person would have to verify after each crash that none of the restored
data belongs to groundstate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from groundstate.transport.port import Finding
from groundstate.transport.reconnecting import ReconnectingTransport

with suppress(ImportError):  # without redis-py, from_url.py raises an error that names the cure, before this module is used
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError, ResponseError
    from redis.retry import Retry


def _client_options() -> Mapping[str, Any]:
    """Return the options for redis-py.

    With these options redis-py does not reconnect by itself, since reconnecting.py must check the server for each new connection.
    """
    return {
        "socket_connect_timeout": 2,
        "socket_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "client_name": "groundstate-hints",
        "retry": Retry(NoBackoff(), 0),
    }


_OF_TCP = {"socket_connect_timeout", "socket_keepalive"}  # names of options that are invalid for a Unix socket
CHAIN_LONGEST = 8  # how many masters are followed in a chain of replicas before the check is given up
_UNSEEN = (
    "let this user see it (`ACL SETUSER <user> +config|get +info`); or, if you know that it does not persist, use `groundstate run"
    " --trust-transport` or `app.start(trust_transport=True)`"
)


class RedisTransport(ReconnectingTransport):
    """The transport over PUBLISH and SUBSCRIBE of Redis. url: a redis://, rediss:// or unix:// URL as redis-py reads it."""

    def __init__(self, url: str) -> None:
        super().__init__("redis", _Driver(url))


class _Driver:
    def __init__(self, url: str) -> None:
        self._url = url
        with closing(self._make_client()) as client:
            try:
                client.connection_pool.make_connection()  # raises if an option in the URL is invalid, and does not connect
            except RedisError:
                raise ValueError from None

    def _make_client(self) -> Any:
        options = {name: value for name, value in _client_options().items() if name not in _OF_TCP or not self._url.startswith("unix:")}
        made = redis.Redis.from_url(self._url, **options)
        made.connection_pool.connection_kwargs["decode_responses"] = False  # hints must come as bytes, even if the URL says otherwise
        return made

    def findings(self, subject: str) -> list[Finding]:  # noqa: ARG002  # `subject` is unused, since the result is the same for every subject
        client = self._make_client()
        try:
            client.ping()
            return [*_findings_on_server(client, "this Redis"), *_findings_on_master(client, "this Redis is")]
        finally:
            client.close()

    def connect_subscriber(self, subject: str) -> _Subscriber:
        return _Subscriber(self._make_client(), subject)

    def connect_publisher(self, subject: str) -> _Publisher:
        return _Publisher(self._make_client(), subject)


def _findings_on_master(client: Any, who: str, steps: int = CHAIN_LONGEST) -> list[Finding]:
    """Return one Finding for each reason against the master of this server, the master's own master, and so on for `steps` masters.

    A replica gets the data of its master, also data that the master restored from disk. The list is empty if this server is no replica.
    """
    try:
        role = client.info("replication")
    except ResponseError:
        return [Finding(False, f"it cannot be seen whether {who} a replica of one that persists (INFO is not allowed)", _UNSEEN)]
    if role.get("role") != "slave":
        return []
    place = f"{role['master_host']}:{role['master_port']}"
    if not steps:
        return [Finding(False, f"{who} a replica of {place}: it cannot be seen whose copy that is in the end", _UNSEEN)]
    given = {**client.connection_pool.connection_kwargs, "host": role["master_host"], "port": int(role["master_port"])}
    master = redis.Redis(
        **{name: value for name, value in given.items() if name in {"host", "port", "username", "password", *_client_options()}}
    )
    try:
        return [
            *_findings_on_server(master, f"{who} a replica of {place}, which"),
            *_findings_on_master(master, f"{who} a replica of {place}, which is", steps - 1),
        ]
    except RedisError as error:
        return [Finding(False, f"{who} a replica of {place}, of which it cannot be seen whether it persists ({error})", _UNSEEN)]
    finally:
        master.close()


def _findings_on_server(client: Any, who: str) -> list[Finding]:
    try:
        settings = {**client.config_get("save"), **client.config_get("appendonly")}
    except ResponseError:  # this user may not use CONFIG GET, or the command was renamed on the server
        return _findings_by_info(client, who)
    if not {"save", "appendonly"} <= set(settings):  # the server is no Redis, but speaks its protocol, and has other settings
        return _findings_by_info(client, who)
    found = []
    if settings.get("save"):
        found.append(
            Finding(True, f'{who} writes snapshots to disk (save "{settings["save"]}")', '`CONFIG SET save ""`, and the same in redis.conf')
        )
    if settings.get("appendonly") == "yes":
        found.append(Finding(True, f"{who} logs each write (appendonly yes)", "`CONFIG SET appendonly no`, and the same in redis.conf"))
    return found


def _findings_by_info(client: Any, who: str) -> list[Finding]:
    with suppress(ResponseError):
        if client.info("persistence").get("aof_enabled"):
            return [Finding(True, f"{who} logs each write (aof_enabled:1)", "`CONFIG SET appendonly no`, and the same in redis.conf")]
    return [
        Finding(
            False,
            f"of {who} it cannot be seen whether it writes snapshots (CONFIG GET does not tell)".replace(", which it", " it"),
            _UNSEEN,
        )
    ]


class _Subscriber:
    def __init__(self, client: Any, subject: str) -> None:
        self._client = client
        self._heard = client.pubsub()
        self._heard.subscribe(subject)
        if self._heard.get_message(timeout=5) is None:  # the first message must be the answer to SUBSCRIBE
            raise ConnectionError("Redis did not answer SUBSCRIBE")

    def receive(self, wait_s: float) -> Sequence[bytes]:
        said = self._heard.get_message(timeout=wait_s)
        return [said["data"]] if said is not None and said["type"] == "message" else []

    def abort(self) -> None:
        self._client.connection_pool.disconnect()

    def close(self) -> None:
        self._heard.close()
        self._client.close()


class _Publisher:
    def __init__(self, client: Any, subject: str) -> None:
        self._client = client
        self._subject = subject
        client.ping()

    def publish(self, hints: Sequence[bytes]) -> None:
        """Publish the hints together in one pipeline."""
        line = self._client.pipeline(transaction=False)
        for hint in hints:
            line.publish(self._subject, hint)
        line.execute()

    def abort(self) -> None:
        self._client.connection_pool.disconnect()

    def close(self) -> None:
        self._client.close()
