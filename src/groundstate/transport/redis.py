"""The transport over Redis pub/sub. A Redis server that persists its data is refused, although pub/sub messages are never written to disk.

With such a server somebody would have to check, after a power failure, whether data of groundstate came back with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from groundstate.transport.port import Finding
from groundstate.transport.reconnecting import ReconnectingTransport

with suppress(ImportError):  # from_url.py raises, with the cure, before anything here is used
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError, ResponseError
    from redis.retry import Retry


def _options() -> Mapping[str, Any]:
    """Return the client options: timeouts, and no retry, since reconnecting.py must check the server again on each new connection."""
    return {
        "socket_connect_timeout": 2,
        "socket_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "client_name": "groundstate-hints",
        "retry": Retry(NoBackoff(), 0),
    }


_OF_TCP = {"socket_connect_timeout", "socket_keepalive"}  # options that a Unix socket does not have
CHAIN_LONGEST = 8  # links of a chain of replicas that are followed towards the first master
_UNSEEN = (
    "let this user see it (`ACL SETUSER <user> +config|get +info`), or say that you know it: `groundstate run --trust-transport`,"
    " `app.start(trust_transport=True)`"
)


class RedisTransport(ReconnectingTransport):
    """The transport over PUBLISH and SUBSCRIBE. `url` is a redis://, rediss:// or unix:// URL of redis-py."""

    def __init__(self, url: str) -> None:
        super().__init__("redis", _Driver(url))


class _Driver:
    def __init__(self, url: str) -> None:
        self._url = url
        with closing(self._client()) as client:
            try:
                client.connection_pool.make_connection()  # connects to nothing, but raises for an option that it cannot read
            except RedisError:
                raise ValueError from None

    def _client(self) -> Any:
        options = {name: value for name, value in _options().items() if name not in _OF_TCP or not self._url.startswith("unix:")}
        made = redis.Redis.from_url(self._url, **options)
        made.connection_pool.connection_kwargs["decode_responses"] = False  # hints are bytes, whatever the URL says
        return made

    def findings(self, subject: str) -> list[Finding]:  # noqa: ARG002  # the answer is the same for every subject
        client = self._client()
        try:
            client.ping()
            return [*_of_itself(client, "this Redis"), *_of_its_master(client, "this Redis is")]
        finally:
            client.close()

    def listen(self, subject: str) -> _Listening:
        return _Listening(self._client(), subject)

    def speak(self, subject: str) -> _Speaking:
        return _Speaking(self._client(), subject)


def _of_its_master(client: Any, who: str, steps: int = CHAIN_LONGEST) -> list[Finding]:
    """Return the findings on the master that this server replicates, and on the masters of that one, for up to `steps` more links.

    A replica has the data of its master, and gets it back from the master's disk after a restart.
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
    master = redis.Redis(**{name: value for name, value in given.items() if name in {"host", "port", "username", "password", *_options()}})
    try:
        return [
            *_of_itself(master, f"{who} a replica of {place}, which"),
            *_of_its_master(master, f"{who} a replica of {place}, which is", steps - 1),
        ]
    except RedisError as error:
        return [Finding(False, f"{who} a replica of {place}, of which it cannot be seen whether it persists ({error})", _UNSEEN)]
    finally:
        master.close()


def _of_itself(client: Any, who: str) -> list[Finding]:
    try:
        settings = {**client.config_get("save"), **client.config_get("appendonly")}
    except ResponseError:  # CONFIG GET is not allowed for this user, or the command was renamed
        return _by_info(client, who)
    if not {"save", "appendonly"} <= set(settings):  # another server with the Redis protocol, which has other settings for persistence
        return _by_info(client, who)
    found = []
    if settings.get("save"):
        found.append(
            Finding(True, f'{who} writes snapshots to disk (save "{settings["save"]}")', '`CONFIG SET save ""`, and the same in redis.conf')
        )
    if settings.get("appendonly") == "yes":
        found.append(Finding(True, f"{who} logs each write (appendonly yes)", "`CONFIG SET appendonly no`, and the same in redis.conf"))
    return found


def _by_info(client: Any, who: str) -> list[Finding]:
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


class _Listening:
    def __init__(self, client: Any, subject: str) -> None:
        self._client = client
        self._heard = client.pubsub()
        self._heard.subscribe(subject)
        if self._heard.get_message(timeout=5) is None:  # the first message is the answer to SUBSCRIBE
            raise ConnectionError("Redis did not answer SUBSCRIBE")

    def heard(self, wait_s: float) -> Sequence[bytes]:
        said = self._heard.get_message(timeout=wait_s)
        return [said["data"]] if said is not None and said["type"] == "message" else []

    def cut(self) -> None:
        self._client.connection_pool.disconnect()

    def close(self) -> None:
        self._heard.close()
        self._client.close()


class _Speaking:
    def __init__(self, client: Any, subject: str) -> None:
        self._client = client
        self._subject = subject
        client.ping()

    def say(self, hints: Sequence[bytes]) -> None:
        """Publish the hints in one pipeline, which is sent at once."""
        line = self._client.pipeline(transaction=False)
        for hint in hints:
            line.publish(self._subject, hint)
        line.execute()

    def cut(self) -> None:
        self._client.connection_pool.disconnect()

    def close(self) -> None:
        self._client.close()
