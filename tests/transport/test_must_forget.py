"""A transport that persists is refused, with what was found and its cure; seen on real servers, each way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pika
import pytest
import redis
from tools.servers.brokers import NatsServer, RedisServer

from groundstate.transport.from_url import make_transport
from groundstate.transport.redis import _findings_on_server
from groundstate.values.errors import DeclarationError, TransportDownError, TransportRefusedError
from tests.patience import until
from tests.transport.conftest import Heard
from tests.transport.rabbitmq import AmqpServer

STREAMS = """
jetstream { store_dir: "FOLDER/jetstream" }
accounts {
    ONE { jetstream: enabled, users: [
        {user: boss, password: boss},
        {user: worker, password: worker, permissions: {publish: ["groundstate.>", "_INBOX.>"], subscribe: [">"]}},
        {user: deaf, password: deaf, permissions: {publish: [">"], subscribe: ["_INBOX.>"]}},
        {user: mute, password: mute, permissions: {publish: ["$JS.>", "_INBOX.>"], subscribe: [">"]}}
    ] }
    TWO { users: [{user: plain, password: plain}] }
}
"""


@contextmanager
def opened(url: str, *, trusted: bool = False) -> Iterator[Any]:
    made = make_transport(url)
    try:
        made.open("groundstate.shop", Heard(), trusted=trusted)
        yield made
    finally:
        made.close()


def refused(url: str, words: str, *, trusted: bool = False) -> None:
    with pytest.raises(TransportRefusedError, match=words), opened(url, trusted=trusted):
        pass


# ---- Redis -------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def keeper() -> Iterator[RedisServer]:
    """A Redis that is set up anew by each test."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def boss(keeper: RedisServer) -> Iterator[Any]:
    client = redis.Redis(port=keeper.port)
    yield client
    client.config_set("save", "")
    client.config_set("appendonly", "no")
    client.replicaof("NO", "ONE")
    client.close()


def test_a_redis_that_keeps_nothing_is_used(keeper: RedisServer, boss: Any) -> None:
    with opened(keeper.url) as transport:
        assert transport.is_usable


def test_a_redis_with_snapshots_is_refused_with_the_command_that_ends_them(keeper: RedisServer, boss: Any) -> None:
    boss.config_set("save", "3600 1")
    refused(keeper.url, r'save "3600 1"\)\. Cure: `CONFIG SET save ""`, and the same in redis.conf')
    refused(keeper.url, "snapshots", trusted=True)
    boss.config_set("save", "")
    with opened(keeper.url) as transport:
        assert transport.is_usable


def test_a_redis_with_an_append_only_file_is_refused(keeper: RedisServer, boss: Any) -> None:
    boss.config_set("appendonly", "yes")
    refused(keeper.url, r"appendonly yes\)\. Cure: `CONFIG SET appendonly no`, and the same in redis.conf")


def test_a_replica_of_a_redis_that_persists_is_refused(keeper: RedisServer, boss: Any) -> None:
    boss.config_set("save", "3600 1")
    with RedisServer("--replicaof", "127.0.0.1", str(keeper.port)) as replica:
        refused(replica.url, rf"replica of 127.0.0.1:{keeper.port}, which writes snapshots")


def test_a_replica_of_a_replica_is_followed_to_the_one_that_persists(keeper: RedisServer, boss: Any) -> None:
    boss.config_set("save", "3600 1")
    with (
        RedisServer("--replicaof", "127.0.0.1", str(keeper.port)) as first,
        RedisServer("--replicaof", "127.0.0.1", str(first.port)) as second,
    ):
        refused(second.url, rf"replica of 127.0.0.1:{first.port}, which is a replica of 127.0.0.1:{keeper.port}, which writes snapshots")
        boss.replicaof("127.0.0.1", second.port)  # each of them copies another one
        boss.config_set("save", "")
        refused(second.url, "it cannot be seen whose copy that is in the end.*--trust-transport")


def test_a_replica_whose_master_is_gone_cannot_be_seen(keeper: RedisServer) -> None:
    with RedisServer("--replicaof", "127.0.0.1", "1") as replica:
        refused(replica.url, "replica of 127.0.0.1:1.*--trust-transport")
        with opened(replica.url, trusted=True) as transport:
            assert transport.is_usable


def test_a_redis_that_does_not_show_its_settings_must_be_trusted(keeper: RedisServer, boss: Any) -> None:
    boss.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all", "-config")
    url = keeper.url.replace("redis://", "redis://worker:secret@")
    refused(url, "cannot be seen.*--trust-transport")
    with opened(url, trusted=True) as transport:
        assert transport.is_usable
    boss.config_set("appendonly", "yes")  # which INFO tells
    refused(url, "aof_enabled", trusted=True)
    boss.config_set("appendonly", "no")
    boss.execute_command("ACL", "SETUSER", "worker", "-info")
    refused(url, "cannot be seen")


@pytest.mark.parametrize(("aof", "surely"), [(0, False), (1, True)])
def test_what_speaks_as_redis_does_and_has_other_settings_is_not_taken_to_forget(aof: int, surely: bool) -> None:
    class Other:
        def config_get(self, _name: str) -> dict[str, str]:
            return {}

        def info(self, _section: str) -> dict[str, int]:
            return {"aof_enabled": aof}

    assert [one.surely for one in _findings_on_server(Other(), "this Redis")] == [surely]


def test_a_redis_that_comes_back_and_persists_is_not_used_again_until_it_forgets(keeper: RedisServer, boss: Any) -> None:
    with opened(keeper.url) as transport:
        keeper.kill()
        until(lambda: not transport.is_usable)
        keeper.settings = ("--save", "3600", "1")
        keeper.start()
        until(lambda: "not used" in transport._said)
        assert not transport.is_usable
        boss.config_set("save", "")
        until(lambda: transport.is_usable)
    keeper.settings = ()


def test_a_redis_that_persists_when_its_connections_break_is_asked_before_it_is_used_again(keeper: RedisServer, boss: Any) -> None:
    with opened(keeper.url) as transport:
        boss.config_set("save", "3600 1")
        boss.client_kill_filter(_type="pubsub")
        until(lambda: "not used" in transport._said)
        assert not transport.is_usable


# ---- NATS --------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def streams() -> Iterator[NatsServer]:
    with NatsServer(STREAMS) as server:
        yield server


def _as(server: NatsServer, who: str) -> str:
    return server.url.replace("nats://", f"nats://{who}:{who}@")


@contextmanager
def stream(server: NatsServer, *subjects: str) -> Iterator[None]:
    """A stream of JetStream on these, while the block runs."""
    import asyncio

    import nats

    async def act(*, make: bool) -> None:
        client = await nats.connect(_as(server, "boss"))
        try:
            if make:
                await client.jetstream().add_stream(name="KEEPS", subjects=list(subjects))
            else:
                await client.jetstream().delete_stream("KEEPS")
        finally:
            await client.close()

    asyncio.run(act(make=True))
    try:
        yield
    finally:
        asyncio.run(act(make=False))


@pytest.mark.parametrize("subject", ["groundstate.>", "groundstate.*", "groundstate.shop"])
def test_a_stream_that_captures_our_subject_is_refused(streams: NatsServer, subject: str) -> None:
    with stream(streams, "orders.>", subject):
        refused(_as(streams, "boss"), "stream KEEPS of JetStream keeps what is said to groundstate.shop.*nats stream rm KEEPS")
        refused(_as(streams, "boss"), "KEEPS", trusted=True)


def test_a_stream_on_something_else_is_no_matter(streams: NatsServer) -> None:
    with stream(streams, "orders.>"), opened(_as(streams, "boss")) as transport:
        assert transport.is_usable


def test_an_account_without_jetstream_keeps_nothing(streams: NatsServer) -> None:
    with opened(_as(streams, "plain")) as transport:
        assert transport.is_usable


def test_a_user_who_may_not_ask_must_trust(streams: NatsServer) -> None:
    refused(_as(streams, "worker"), "cannot be seen.*STREAM.NAMES")
    with opened(_as(streams, "worker"), trusted=True) as transport:
        assert transport.is_usable


def test_a_user_who_may_not_listen_is_not_up_and_the_log_says_why(streams: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    with opened(_as(streams, "deaf")) as transport:
        assert not transport.is_usable
    assert "permissions violation for subscription" in caplog.text.lower()


def test_a_user_who_may_not_send_is_not_up_and_the_log_says_why_once(streams: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    with opened(_as(streams, "mute")) as transport:
        tried, connect = list[str](), transport._driver.connect_publisher

        def connects(subject: str) -> Any:
            tried.append(subject)
            return connect(subject)

        transport._driver.connect_publisher = connects
        until(lambda: len(tried) > 1)  # it tries again, and once more when it was refused
        assert not transport.is_usable
    assert caplog.text.lower().count("permissions violation for publish") == 1


# ---- RabbitMQ ----------------------------------------------------------------------------------------------------------------------
@contextmanager
def declared(server: AmqpServer, *, queue: bool | None = None, exchange: bool = False) -> Iterator[None]:
    """The exchange, durable or as ours, and a queue of somebody else's that is bound to it: durable, not, or none."""
    connection = pika.BlockingConnection(pika.URLParameters(f"amqp://guest:guest@127.0.0.1:{server.port}/%2F"))
    channel = connection.channel()
    channel.exchange_declare("groundstate.shop", "fanout", durable=exchange, auto_delete=not exchange)
    if queue is not None:
        channel.queue_declare("archive", durable=queue, exclusive=not queue)
        channel.queue_bind("archive", "groundstate.shop")
    try:
        yield
    finally:
        if queue is not None:
            channel.queue_delete("archive")
        channel.exchange_delete("groundstate.shop")
        connection.close()


def test_a_durable_queue_on_our_exchange_is_refused_with_the_command_that_deletes_it(amqp_server: AmqpServer) -> None:
    with declared(amqp_server, queue=True):
        refused(amqp_server.url, "durable queue archive is bound.*delete queue name=archive")
        refused(amqp_server.url, "archive", trusted=True)
    with opened(amqp_server.url) as transport:
        assert transport.is_usable


def test_a_queue_that_is_not_durable_is_no_matter(amqp_server: AmqpServer) -> None:
    with declared(amqp_server, queue=False), opened(amqp_server.url) as transport:
        assert transport.is_usable


def test_a_durable_exchange_of_our_name_is_refused(amqp_server: AmqpServer) -> None:
    with declared(amqp_server, exchange=True):
        refused(amqp_server.url, "inequivalent arg 'durable'.*delete exchange name=groundstate.shop", trusted=True)


@pytest.mark.parametrize("user", ["worker", "guest"])
def test_a_rabbitmq_that_does_not_say_what_is_bound_must_be_trusted(amqp_server: AmqpServer, user: str) -> None:
    url = amqp_server.url_of(user, 1 if user == "guest" else None)  # not allowed; or nobody is there
    with declared(amqp_server, queue=True):
        refused(url, "cannot be seen what is bound.*--trust-transport")
        with opened(url, trusted=True) as transport:
            assert transport.is_usable


# ---- URLs --------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("url", ["kafka://localhost", "localhost:4222", "", "postgresql+pg8000://localhost/app"])
def test_a_url_that_names_no_transport_is_refused_with_those_that_do(url: str) -> None:
    with pytest.raises(DeclarationError, match="nats://localhost:4222"):
        make_transport(url)


@pytest.mark.parametrize("scheme", ["kafka", "postgresql", "nats", "redis", "amqp"])
def test_no_password_is_shown(scheme: str) -> None:
    with pytest.raises(DeclarationError) as said:
        make_transport(f"{scheme}://user:top:secret/@localhost:port")
    assert "secret" not in str(said.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://localhost?db=abc", "in its URL db= cannot be read"),
        ("redis://localhost?db=1&nosuch=1", "in its URL nosuch= cannot be read"),
        ("rediss://localhost?ssl_cert_reqs=odd", "in its URL ssl_cert_reqs= cannot be read"),
        ("redis:localhost", "write redis://user"),
        ("unix:/run/redis.sock", "write unix:///run/redis.sock"),
        ("postgresql://localhost/shop?nosuch=1", "in its URL nosuch= cannot be read"),
        ("postgresql+asyncpg://localhost/shop?nosuch=1", "asyncpg's argument 'nosuch' has no equivalent"),
        ("postgresql:shop", "write postgresql://user"),
        ("amqp://localhost?heartbeat=abc&frame_max=4096", "in its URL heartbeat= cannot be read"),
        ("amqp://localhost?management=http://x:port", "in its URL management= cannot be read"),
        ("amqp://localhost?management=x:15672", "in its URL management= cannot be read"),
        ("amqp:localhost", "write amqp://user"),
        ("nats:localhost", "write nats://user"),
        ("tls://", "write tls://user"),
        (5, "int is no URL"),
        (b"nats://localhost", "bytes is no URL"),
    ],
)
def test_what_cannot_be_read_in_a_url_is_named_where_it_is_declared(url: object, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        make_transport(url)


@pytest.mark.parametrize("url", ["redis://user:12?se=cret@localhost", "amqp://user:12?se=cret@localhost"])
def test_what_may_be_of_a_password_is_not_named_as_an_option(url: str) -> None:
    with pytest.raises(DeclarationError, match="with @ : / in a password") as said:
        make_transport(url)
    assert "cret" not in str(said.value)


def _is_heard(transport: Any, heard: Heard) -> bool:
    """Sends a hint, and says whether one has come."""
    transport.send(b"here")
    return b"here" in heard.all


def test_a_redis_is_reached_by_its_socket_and_heard_in_bytes_whatever_its_url_says(keeper: RedisServer) -> None:
    path = keeper.folder / "redis.sock"
    with RedisServer("--unixsocket", str(path)):
        for url in (f"unix://{path}?db=1", f"{keeper.url}?decode_responses=true"):
            heard = Heard()
            transport = make_transport(url)
            transport.open("groundstate.shop", heard)
            until(partial(_is_heard, transport, heard))  # its socket may take nobody yet, and a hint is lost then
            transport.close()


def test_asyncpgs_options_are_said_to_libpq_as_those_of_a_store_are() -> None:
    transport: Any = make_transport("postgresql+asyncpg://user:secret@db/shop?ssl=require&timeout=3&statement_cache_size=0")
    said = {"sslmode": "require", "connect_timeout": 3, "prepare_threshold": None}
    assert (
        transport._driver._connect.keywords.items()
        >= {"host": "db", "user": "user", "password": "secret", "dbname": "shop", **said}.items()
    )


@pytest.mark.parametrize(
    ("url", "at"),
    [("amqp://guest:guest@[::1]:1/", "http://::1:15672"), ("amqp:///%2F", "http://localhost:15672"), ("amqps://b", "https://b:15671")],
)
def test_rabbitmq_is_asked_about_bindings_on_its_own_host(url: str, at: str) -> None:
    transport: Any = make_transport(url)
    assert transport._driver._management._at == at


def test_what_cannot_be_reached_says_so_when_it_is_asked() -> None:
    with pytest.raises(TransportDownError, match="redis transport cannot be reached"):
        make_transport("redis://127.0.0.1:1").findings()
