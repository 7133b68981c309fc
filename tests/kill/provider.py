"""The outside: all four endpoints behind one socket, with a ledger in the judge's memory, which no kill of a worker reaches.

Slow, refusing, busy, losing answers, and acting on a call as late as the contract allows. It never invents or hides for longer than that.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Self

from tests.kill.shop import KEPT_FOR, SETTLE_AFTER, TIMEOUT

Request = dict[str, Any]
GIVEN_UP_S = TIMEOUT.total_seconds()
TRICKS = {"prompt": 70, "slow": 10, "answer lost": 5, "answer late": 3, "lands late": 5, "never arrives": 3, "refused": 3, "busy": 1}


@dataclass(frozen=True)
class Effect:
    """What was done to the outside, once."""

    id: str
    call: str
    record: str
    occurrence: str
    key: str
    at: float
    shown_at: float  # a find does not see it before
    pid: int


class Ledger:
    """All effects, in the order in which they landed. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._effects: list[Effect] = []
        self._by_key: dict[str, list[Effect]] = {}

    def land(self, asked: Request, shown_at: float, now: float) -> Effect:
        """Acts on a call. The courier alone knows keys, and for KEPT_FOR it acts once under each; the others act each time."""
        with self._lock:
            before = self._by_key.setdefault(asked["key"], [])
            if asked["call"] == "label" and before and now - before[-1].at < KEPT_FOR.total_seconds():
                return before[-1]
            effect = Effect(
                f"{asked['call']}-{len(self._effects) + 1}",
                asked["call"],
                asked["record"],
                asked["occurrence"],
                asked["key"],
                now,
                shown_at,
                asked["pid"],
            )
            self._effects.append(effect)
            before.append(effect)
            return effect

    def find(self, key: str, now: float) -> Effect | None:
        """The first effect under a key, once it is shown."""
        with self._lock:
            return next((effect for effect in self._by_key.get(key, ()) if effect.shown_at <= now), None)

    def since(self, number: int) -> list[Effect]:
        """The effects from that number on."""
        with self._lock:
            return self._effects[number:]


class Provider:
    """Serves in a thread of its own, in a `with`."""

    def __init__(self, door: Path, dice: Random, clock: Callable[[], float] = time.time) -> None:
        self.ledger = Ledger()
        self.tricks: Counter[str] = Counter()
        self.finds: Counter[str] = Counter()
        self.after_deadline = 0  # calls that went out later than their own deadline
        self._door, self._dice, self._clock = door, dice, clock
        self._loop = asyncio.new_event_loop()
        self._open = threading.Event()
        self._ended: asyncio.Event | None = None
        self._landing: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="provider", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._open.wait(10):
            raise TimeoutError("the provider does not open its door")
        return self

    def __exit__(self, *_: object) -> None:
        if self._ended is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        self._loop.close()

    @property
    def in_the_air(self) -> int:
        """Calls that it has heard and not acted on yet."""
        return len(self._landing)

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        served: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._client(reader, writer))
            served.add(task)
            task.add_done_callback(served.discard)

        server = await asyncio.start_unix_server(connected, self._door, backlog=512)
        self._open.set()
        await self._ended.wait()
        server.close()
        for task in [*served, *self._landing]:
            task.cancel()
        await asyncio.gather(*served, *self._landing, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line.endswith(b"\n"):  # else its process was killed while it wrote
                asked: Request = json.loads(line)
                answer = await (self._find(asked) if asked["ask"] == "find" else self._do(asked))
                if answer is not None:
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
        except ConnectionError:
            pass  # the client is gone: it was killed, or gave up
        finally:
            writer.close()

    async def _find(self, asked: Request) -> Request:
        if self._dice.random() < 0.1:
            self.finds[f"{asked['call']}: unknown"] += 1
            return {"unknown": "ask again"}
        effect = self.ledger.find(asked["key"], self._clock())
        self.finds[f"{asked['call']}: {'found' if effect else 'absent'}"] += 1
        return {"id": effect.id} if effect else {"absent": True}

    async def _do(self, asked: Request) -> Request | None:
        if self._clock() > asked["until"] - SETTLE_AFTER.total_seconds():
            self.after_deadline += 1
        trick = self._dice.choices(list(TRICKS), list(TRICKS.values()))[0]
        self.tricks[trick] += 1
        match trick:
            case "prompt":
                await asyncio.sleep(self._dice.uniform(0, 0.03))
            case "slow":
                await asyncio.sleep(self._dice.uniform(0.05, GIVEN_UP_S * 0.9))
            case "refused":
                return {"refused": "the provider refuses this one now"}
            case "busy":
                return {"busy": 0.2}
            case "never arrives":
                return None
            case "lands late":
                self._land_late(asked)
                await asyncio.sleep(self._dice.choice([0, GIVEN_UP_S + 0.2]))
                return None
        effect = self._land(asked)
        if trick == "answer lost":
            return None
        if trick == "answer late":
            await asyncio.sleep(GIVEN_UP_S + self._dice.uniform(0.05, 1))
        return {"id": effect.id}

    def _land(self, asked: Request) -> Effect:
        now = self._clock()
        hidden = self._dice.uniform(0, 0.9) if self._dice.random() < 0.25 else 0.0
        return self.ledger.land(asked, max(now, now + (asked["until"] - 0.1 - now) * hidden), now)

    def _land_late(self, asked: Request) -> None:
        """Acts up to a moment before the last one that the contract allows; where we were too slow ourselves, not at all."""
        at = self._clock() + (asked["until"] - 0.1 - self._clock()) * self._dice.uniform(0.1, 1)

        async def land() -> None:
            await asyncio.sleep(max(at - self._clock(), 0))
            if self._clock() < asked["until"] - 0.02:
                self._land(asked)

        task = asyncio.get_running_loop().create_task(land())
        self._landing.add(task)
        task.add_done_callback(self._landing.discard)
