"""A TCP proxy before PostgreSQL, as a separate process, which cuts connections after a number of bytes or stalls them for a while.

`python -m tools.torture.proxy PORT SEED` forwards to 127.0.0.1:PORT, and prints its own port as its first line. Commands on stdin: `cut
COUNT` and `stall COUNT SECONDS` draw connections, a direction, and how many bytes still pass; `calm` cancels what has not happened yet. It
prints a line `cut` or `stall` for each that happened. It changes no byte.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass
from random import Random

BYTES_MOST = 3000  # the most bytes that pass before a cut: several statements with their answers, or the middle of one


@dataclass(eq=False)
class Pipe:
    """One direction of a connection."""

    source: asyncio.StreamReader
    sink: asyncio.StreamWriter
    left: int | None = None  # bytes that still pass before a cut or stall; None: none is planned
    stall_s: float = 0.0  # seconds of the stall; 0 means a cut


class Proxy:
    """The proxy with all its connections."""

    def __init__(self, port: int, dice: Random) -> None:
        self._port, self._dice = port, dice
        self._pipes: list[tuple[Pipe, Pipe]] = []

    async def forward_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until either end closes it or the proxy cuts it."""
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        pair = (Pipe(reader, far_writer), Pipe(far_reader, writer))
        self._pipes.append(pair)
        try:
            tasks = [asyncio.ensure_future(self._forward(pipe)) for pipe in pair]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._pipes.remove(pair)
            # An abort loses what is still on its way, as when a line is cut.
            writer.transport.abort()
            far_writer.transport.abort()

    async def _forward(self, pipe: Pipe) -> None:
        with suppress(OSError):
            while data := await pipe.source.read(65536):
                if pipe.left is not None and len(data) >= pipe.left:
                    first, data = data[: pipe.left], data[pipe.left :]
                    pipe.sink.write(first)
                    await pipe.sink.drain()
                    if not pipe.stall_s:
                        await asyncio.sleep(0)  # lets the first part be sent before the line goes dead
                        _print_line("cut")
                        return
                    _print_line("stall")
                    pipe.left = None
                    await asyncio.sleep(pipe.stall_s)
                elif pipe.left is not None:
                    pipe.left -= len(data)
                pipe.sink.write(data)
                await pipe.sink.drain()

    def execute_command(self, words: list[str]) -> None:
        """Carry out a command from stdin."""
        if words[0] == "calm":
            for pair in self._pipes:
                for pipe in pair:
                    pipe.left = None
            return
        for pair in self._dice.sample(self._pipes, min(int(words[1]), len(self._pipes))):
            pipe = self._dice.choice(pair)
            pipe.left = self._dice.randint(0, BYTES_MOST)
            pipe.stall_s = float(words[2]) if words[0] == "stall" else 0.0


def _print_line(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Run the proxy until stdin is closed."""
    port, seed = int(sys.argv[1]), int(sys.argv[2])
    proxy = Proxy(port, Random(seed))
    server = await asyncio.start_server(proxy.forward_connection, "127.0.0.1", 0, backlog=512)
    _print_line(str(server.sockets[0].getsockname()[1]))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        proxy.execute_command(line.decode().split())
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
