"""All that can happen next in the toy world, and how it comes to rest. Whoever drives the world chooses among the moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.rules.world import DOUBT, FAILED, HELD, World

Move = Callable[[], None]


def moves(world: World) -> list[Move]:
    """The ordinary ones several times, so that whoever chooses blindly has a story to tell before all is broken."""
    return [*_of_workers(world), *_of_calls(world), *_of_questions(world)] * 12 + [*_troubles(world), *_of_the_rest(world)]


def _of_workers(world: World) -> Iterator[Move]:
    for process, life in enumerate(world.lives):
        if life is None:
            yield partial(world.starts, process)
            continue
        if world.to_take():
            yield partial(world.takes, process)
        if world.to_sweep(life):
            yield partial(world.sweeps, process)
        for at in world.of_rows(process, DOUBT):
            if world.kind not in ("lookup", "same_key") or not any(asked.process == process for asked in world.queries):
                yield partial(world.settles, process, at)
        for at in world.of_rows(process, FAILED):
            if world.trouble and world.facts(at).holds and world.expired(at) and not world.blocked(at):
                yield partial(world.expires, at, handler_raises=True)
            yield partial(world.looks_at_failed, process, at)


def _troubles(world: World) -> Iterator[Move]:
    for process, life in enumerate(world.lives):
        if world.trouble and life is not None:
            if world.to_take():
                yield partial(world.takes, process, commit_unknown=True)
                if world.expired(world.occurrence):
                    yield partial(world.expires, world.occurrence, handler_raises=True)
            if world.rows:
                yield partial(world.is_killed, process)
                if not world.threads:
                    yield partial(world.loses_its_lock, process)
    for call in world.calls:
        if world.trouble and call.task == "begun" and world.lives[call.process] is not None:
            yield partial(world.goes_out_or_not, call, stops=True)


def _of_calls(world: World) -> Iterator[Move]:
    for call in world.calls:
        if call.request == "air":
            yield partial(world.request_ends, call, "landed")
            if world.trouble:
                yield partial(world.request_ends, call, "refused")
                yield partial(world.request_ends, call, "lost")
        if world.lives[call.process] is None:
            continue
        if call.task == "begun":
            yield partial(world.goes_out_or_not, call)
            if world.trouble and world.threads:
                yield partial(world.hangs, call)
        if call.task == "stuck":
            yield partial(world.sends_after_all, call)
        if call.task in ("stuck", "waiting") and (world.trouble or call.request == "lost"):
            yield partial(world.times_out, call, listens=False)
            yield partial(world.times_out, call, listens=True)
        if call.task in ("waiting", "given up") and call.request in ("landed", "refused"):
            yield partial(world.answers, call)
            if world.trouble:
                yield partial(world.answers, call, handler_raises=True)
        if call.task == "given up" and call.request == "lost":
            yield partial(world.thread_ends, call)


def _of_questions(world: World) -> Iterator[Move]:
    for asked in world.queries:
        if asked.answer is None:
            yield partial(world.outside_answers, asked)
            if world.trouble:
                yield partial(world.outside_answers, asked, knows=False)
        else:
            yield partial(world.answer_is_applied, asked)
            if world.trouble:
                yield partial(world.answer_is_applied, asked, handler_raises=True)


def _of_the_rest(world: World) -> Iterator[Move]:
    yield from (partial(world.time_passes, seconds) for seconds in (6, 26) if world.calls)
    if world.calls and world.exists and world.writes:
        yield from (partial(world.shop_writes, deed) for deed in ("done by hand", "next", "deleted"))
    for at, one in world.rows.items():
        if one.state is HELD and world.words:
            yield from (partial(world.person_says, at, deed) for deed in ("retry", "absent", "outcome", "forget"))


def comes_to_rest(world: World) -> None:
    """Without further trouble all is done, or stands listed for a person: NotLost and NothingAtRest."""
    world.trouble = world.writes = world.words = 0
    for _ in range(300):
        waits = ("time_passes", "person_says")
        honest = [move for move in moves(world) if getattr(move, "func", move).__name__ not in waits]
        if honest:
            honest[0]()
        elif all(one.state is HELD or (one.state is FAILED and world.blocked(at)) for at, one in world.rows.items()):
            break
        else:
            world.time_passes(6)
        world.check()
    else:
        raise AssertionError("NothingAtRest")
    if world.facts(world.occurrence).holds:
        one = world.rows.get(world.occurrence)
        assert (one is not None and one.state is HELD) or world.blocked(world.occurrence), "NotLost"
