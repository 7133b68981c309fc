"""A small AMQP 0-9-1 broker of the tests' own, run as a program: `python amqp_broker.py PORT MANAGEMENT_PORT`.

It is not RabbitMQ. It speaks what pika needs to declare fanout exchanges and queues, bind, consume and publish, and the two paths of the
management API that are asked; there are no acknowledgements, no routing, no limits, no disk, no virtual hosts. `durable` is a mark that
it tells again, and nothing is durable: it forgets all when it ends. What RabbitMQ does is seen by hand over a real one: see rabbitmq.py.
Users: guest sees all; `worker` may not ask the management API. Passwords are not looked at.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from pika import frame, spec

numbers = itertools.count(1)


class Broker:
    """All exchanges and queues."""

    def __init__(self) -> None:
        self.exchanges: dict[str, spec.Exchange.Declare] = {}
        self.queues: dict[str, Queue] = {}
        self.bound: dict[str, set[str]] = {}

    def forget(self, connection: Connection) -> None:
        """What was exclusive goes, and an exchange whose last queue went."""
        for name in [name for name, queue in self.queues.items() if queue.owner is connection]:
            del self.queues[name]
            for exchange, queues in list(self.bound.items()):
                queues.discard(name)
                if not queues and self.exchanges[exchange].auto_delete:
                    del self.bound[exchange], self.exchanges[exchange]
        for queue in self.queues.values():
            queue.consumers = [one for one in queue.consumers if one[0] is not connection]

    def told(self, path: str) -> Any:
        """The management API's answer; None: 404."""
        match [unquote(word) for word in path.split("/")][2:]:
            case ["exchanges", _, name, "bindings", "source"] if name in self.exchanges:
                return [{"destination_type": "queue", "destination": one} for one in self.bound[name]]
            case ["queues", _, name] if name in self.queues:
                return {"durable": self.queues[name].durable}
        return None


class Queue:
    """Hands on what comes; keeps nothing."""

    def __init__(self, owner: Connection | None, *, durable: bool) -> None:
        self.owner, self.durable = owner, durable
        self.consumers: list[tuple[Connection, int, str]] = []


class Connection:
    """One client's."""

    def __init__(self, broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.broker, self.reader, self.writer = broker, reader, writer
        self.publishing: dict[int, tuple[str, int, bytes]] = {}

    async def serve(self) -> None:
        """Until it ends."""
        data = b""
        try:
            while more := await self.reader.read(65_536):
                data += more
                while True:
                    used, found = frame.decode_frame(data)
                    if found is None:
                        break
                    data = data[used:]
                    self.take(found)
                await self.writer.drain()
        except OSError:
            pass
        finally:
            self.broker.forget(self)
            self.writer.close()

    def answer(self, channel: int, method: Any) -> None:
        self.writer.write(frame.Method(channel, method).marshal())

    def refuse(self, channel: int, code: int, words: str, method: Any) -> None:
        self.answer(channel, spec.Channel.Close(code, words, method.INDEX >> 16, method.INDEX & 0xFFFF))

    def take(self, found: Any) -> None:
        if isinstance(found, frame.ProtocolHeader):
            can = {"capabilities": {"consumer_cancel_notify": True, "connection.blocked": True}}
            self.answer(0, spec.Connection.Start(0, 9, can, "PLAIN", "en_US"))
        elif isinstance(found, frame.Header):
            self.publishing[found.channel_number] = (self.publishing[found.channel_number][0], found.body_size, b"")
            self.publish(found.channel_number)
        elif isinstance(found, frame.Body):
            exchange, size, body = self.publishing[found.channel_number]
            self.publishing[found.channel_number] = (exchange, size, body + found.fragment)
            self.publish(found.channel_number)
        elif isinstance(found, frame.Method):
            self.carry_out(found.channel_number, found.method)

    def carry_out(self, channel: int, method: Any) -> None:
        match method:
            case spec.Connection.StartOk():
                self.answer(0, spec.Connection.Tune(2047, 131_072, 0))
            case spec.Connection.Open():
                self.answer(0, spec.Connection.OpenOk())
            case spec.Connection.Close():
                self.answer(0, spec.Connection.CloseOk())
            case spec.Channel.Open():
                self.answer(channel, spec.Channel.OpenOk())
            case spec.Channel.Close():
                self.answer(channel, spec.Channel.CloseOk())
            case spec.Exchange.Declare():
                self.declare(channel, method)
            case spec.Queue.Declare():
                name = method.queue or f"amq.gen-{next(numbers)}"
                self.broker.queues[name] = Queue(self if method.exclusive else None, durable=method.durable)
                self.answer(channel, spec.Queue.DeclareOk(name, 0, 0))
            case spec.Queue.Bind():
                self.broker.bound[method.exchange].add(method.queue)
                self.answer(channel, spec.Queue.BindOk())
            case spec.Basic.Consume():
                tag = method.consumer_tag or f"ctag{next(numbers)}"
                self.broker.queues[method.queue].consumers.append((self, channel, tag))
                self.answer(channel, spec.Basic.ConsumeOk(tag))
            case spec.Basic.Cancel():
                self.answer(channel, spec.Basic.CancelOk(method.consumer_tag))
            case spec.Basic.Publish():
                if method.exchange not in self.broker.exchanges:
                    self.refuse(channel, 404, f"NOT_FOUND - no exchange '{method.exchange}'", method)
                self.publishing[channel] = (method.exchange, 0, b"")
            case spec.Queue.Delete():
                self.delete_queue(channel, method.queue)
            case spec.Exchange.Delete():
                self.broker.exchanges.pop(method.exchange, None)
                self.broker.bound.pop(method.exchange, None)
                self.answer(channel, spec.Exchange.DeleteOk())

    def declare(self, channel: int, method: Any) -> None:
        known = self.broker.exchanges.get(method.exchange)
        if known is None and method.passive:
            self.refuse(channel, 404, f"NOT_FOUND - no exchange '{method.exchange}'", method)
            return
        if known is not None and not method.passive and known.durable != method.durable:
            words = f"PRECONDITION_FAILED - inequivalent arg 'durable' for exchange '{method.exchange}'"
            self.refuse(channel, 406, words, method)
            return
        if known is None:
            self.broker.exchanges[method.exchange] = method
            self.broker.bound[method.exchange] = set()
        self.answer(channel, spec.Exchange.DeclareOk())

    def delete_queue(self, channel: int, name: str) -> None:
        queue = self.broker.queues.pop(name, None)
        for queues in self.broker.bound.values():
            queues.discard(name)
        for connection, of, tag in queue.consumers if queue is not None else ():
            connection.answer(of, spec.Basic.Cancel(tag, nowait=True))
        self.answer(channel, spec.Queue.DeleteOk(0))

    def publish(self, channel: int) -> None:
        exchange, size, body = self.publishing[channel]
        if len(body) < size:
            return
        for name in self.broker.bound.get(exchange, ()):
            for connection, number, tag in self.broker.queues[name].consumers:
                if connection.writer.transport.get_write_buffer_size() > 10_000_000:
                    continue  # a slow one
                connection.answer(number, spec.Basic.Deliver(tag, 1, exchange=exchange, routing_key=""))
                connection.writer.write(frame.Header(number, size, spec.BasicProperties()).marshal())
                if body:
                    connection.writer.write(frame.Body(number, body).marshal())


async def tell(broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request to the management API."""
    with suppress(OSError, asyncio.IncompleteReadError):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        user = next(base64.b64decode(line.split()[-1]).decode() for line in head if line.lower().startswith("authorization:"))
        said = broker.told(urlsplit(head[0].split()[1]).path)
        status = "401 Unauthorized" if user.startswith("worker:") else "404 Not Found" if said is None else "200 OK"
        body = json.dumps(said).encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
    writer.close()


async def main(port: int, management: int) -> None:
    broker = Broker()
    await asyncio.start_server(lambda reader, writer: tell(broker, reader, writer), "127.0.0.1", management)
    server = await asyncio.start_server(lambda reader, writer: Connection(broker, reader, writer).serve(), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
