"""The provider, the external service of the torture: a separate process with all endpoints behind one socket, and a ledger in a file.

No kill of a worker reaches it. It is slow, refuses, is busy, loses answers, and acts on a call as late as the contract allows, but never
later; it never invents an effect. Run it as `python -m tools.torture.provider DOOR LEDGER REQUESTS SEED`; it serves until its stdin is
closed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import IO, Any

from tools.torture.ledger import Effect, Ledger
from tools.torture.shop import TIMEOUT

Request = dict[str, Any]
GIVEN_UP_S = TIMEOUT.total_seconds()
TRICKS = {"prompt": 70, "slow": 10, "answer lost": 5, "answer late": 3, "lands late": 5, "never arrives": 3, "refused": 3, "busy": 1}
# Seconds: the last call lands this long before `until`, since a lookup may be sent from then on, when no call may be in flight.
AHEAD_S = 0.1


class Provider:
    """The provider's server, which answers requests by random tricks."""

    def __init__(
        self, door: Path, ledger: Ledger, dice: Random, clock: Callable[[], float] = time.time, requests: IO[str] | None = None
    ) -> None:
        self.ledger = ledger
        self.tricks: Counter[str] = Counter()
        self.finds: Counter[str] = Counter()
        self.known: Counter[str] = Counter()  # calls under a known key, answered with the earlier effect
        self.late = 0  # calls that were carried out later than their deadline + settle_after
        self._gate, self._dice, self._clock, self._requests = door, dice, clock, requests
        self._landing: dict[asyncio.Task[None], str] = {}  # keys of calls that were received and not carried out yet
        self._heard: Counter[str] = Counter()  # keys of requests that are being answered now

    async def serve(self, ended: asyncio.Event) -> None:
        """Serve until the event is set."""
        served: set[asyncio.Task[None]] = set()

        def handle_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._serve_client(reader, writer))
            served.add(task)
            task.add_done_callback(served.discard)

        server = await asyncio.start_unix_server(handle_connection, self._gate, backlog=512)
        await ended.wait()
        server.close()
        tasks = [*served, *self._landing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line.endswith(b"\n"):  # otherwise the client was killed while it wrote
                answer = await self._answer_request(json.loads(line))
                if answer is not None:
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
        except ConnectionError:
            pass  # the client was killed or gave up
        finally:
            writer.close()

    async def _answer_request(self, asked: Request) -> Any:
        match asked["ask"]:
            case "do":
                return await self._answer_call(asked)
            case "many":
                return await asyncio.gather(*[self._answer_call({**one, "sent": asked["sent"]}) for one in asked["each"]])
            case "find":
                return self._answer_lookup(asked)
            case "truth":
                return self._answer_person(asked["key"])
            case _:
                return self.count_figures()

    def count_figures(self) -> Request:
        """Return the provider's counts for the report."""
        return {
            "tricks": dict(self.tricks),
            "finds": dict(self.finds),
            "known keys": dict(self.known),
            "late": self.late,
            "in the air": len(self._landing),
        }

    def _answer_person(self, key: str) -> Request:
        """Answer a person who looks up a key at the provider: nothing is hidden, and a call in flight gives `unknown`."""
        if key in self._landing.values() or self._heard[key]:
            return {"unknown": "one is on its way"}
        effect = self.ledger.look_up(key, float("inf"))
        return {"id": effect.id} if effect else {"absent": True}

    def _answer_lookup(self, asked: Request) -> Request:
        if self._dice.random() < 0.1:
            self.finds[f"{asked['call']}: unknown"] += 1
            return {"unknown": "ask again"}
        effect = self.ledger.look_up(asked["key"], self._clock())
        self.finds[f"{asked['call']}: {'found' if effect else 'absent'}"] += 1
        return {"id": effect.id} if effect else {"absent": True}

    async def _answer_call(self, asked: Request) -> Request | None:
        self._heard[asked["key"]] += 1
        trick = self._dice.choices(list(TRICKS), list(TRICKS.values()))[0]
        if self._requests is not None:
            told = ("key", "call", "record", "occurrence", "pid", "sent")
            self._requests.write(json.dumps({name: asked[name] for name in told} | {"trick": trick}) + "\n")
        try:
            return await self._apply_trick(asked, trick)
        finally:
            self._heard[asked["key"]] -= 1
            if not self._heard[asked["key"]]:
                del self._heard[asked["key"]]

    async def _apply_trick(self, asked: Request, trick: str) -> Request | None:
        if asked["sent"] > asked["until"]:
            return {"id": self._carry_out(asked).id}  # a real provider would carry it out as well, since it does not know our deadline
        if self._clock() > asked["until"] - AHEAD_S:
            trick = "never arrives"  # it was sent in time and received too late because we are slow; this keeps the contract
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
                self._carry_out_late(asked)
                await asyncio.sleep(self._dice.choice([0, GIVEN_UP_S + 0.2]))
                return None
        if self._clock() > asked["until"] - AHEAD_S / 5:
            return None  # it became too late meanwhile because we are slow
        effect = self._carry_out(asked)
        if trick == "answer lost":
            return None
        if trick == "answer late":
            await asyncio.sleep(GIVEN_UP_S + self._dice.uniform(0.05, 1))
        return {"id": effect.id}

    def _carry_out(self, asked: Request) -> Effect:
        now = self._clock()
        late_s = max(asked["sent"] - asked["until"], 0.0)
        self.late += late_s > 0
        hidden = self._dice.uniform(0, 0.9) if self._dice.random() < 0.25 else 0.0
        shown_at = max(now, now + (asked["until"] - AHEAD_S - now) * hidden)
        effect = self.ledger.carry_out(asked, shown_at, now, kept_s=asked["kept"], late_s=late_s)
        self.known[asked["call"]] += effect.at < now
        return effect

    def _carry_out_late(self, asked: Request) -> None:
        """Carry out the call at a random time before the last one that the contract allows; skip it if we were too slow ourselves."""
        at = self._clock() + (asked["until"] - AHEAD_S - self._clock()) * self._dice.uniform(0.1, 1)

        async def carry_out_now() -> None:
            await asyncio.sleep(max(at - self._clock(), 0))
            if self._clock() < asked["until"] - AHEAD_S / 5:
                self._carry_out(asked)

        task = asyncio.get_running_loop().create_task(carry_out_now())
        self._landing[task] = asked["key"]
        task.add_done_callback(self._landing.pop)


async def main() -> None:
    """Serve until stdin is closed."""
    door, ledger, requests, seed = sys.argv[1:]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)  # no process writes to it, so readable means closed
    heard = Path(requests).open("a", buffering=1)  # noqa: SIM115, ASYNC230  # opened once before the first request, and used until this process ends
    await Provider(Path(door), Ledger(Path(ledger)), Random(int(seed)), requests=heard).serve(ended)


if __name__ == "__main__":
    asyncio.run(main())
