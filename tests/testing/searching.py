"""Which schedules a planted fault is looked for in: a few of the lab's own kinds, so that each test is short. Knows nothing of faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from unittest import mock

from groundstate.testing.search import schedule_search
from groundstate.testing.search.schedule_search import CleanRun
from groundstate.testing.simulate.crash_plan import Move, Schedule
from groundstate.testing.simulate.fake_provider import Mood

Search = Callable[[CleanRun], Iterator[Schedule]]
AROUND_CALLS = ("call", "done", "answered")


def moods(*chosen: Sequence[str], lookups_lag: bool = False) -> Search:
    """For each: the first call ends so, the second so, ..."""

    def search(_seen: CleanRun) -> Iterator[Schedule]:
        for words in chosen:
            yield Schedule(moods=tuple((number, Mood(word)) for number, word in enumerate(words, 1)), lookups_lag=lookups_lag)

    return search


def at(kind: str, *crossings: str, which: int = 0, beside: Sequence[str] = (), after_first_call: bool = False) -> Search:
    """One move at each crossing of these kinds. beside: how the calls end."""

    def search(seen: CleanRun) -> Iterator[Schedule]:
        first = next((one.number for one in seen.crossings if one.kind == "call"), 0) if after_first_call else 0
        for one in seen.crossings:
            if one.kind in crossings and one.number >= first:
                made = Schedule((Move(one.number, kind, which),))
                yield replace(made, moods=tuple((number, Mood(word)) for number, word in enumerate(beside, 1)))

    return search


def hints(*chosen: str) -> Search:
    return lambda _seen: iter([Schedule(hints=one) for one in chosen])


def back_in_time(*beside: str, copied: tuple[str, int, int] = ("committed", 0, 0), restored: tuple[str, int] = ("call", 20)) -> Search:
    """The database is put back to what it was.

    copied: at the nth crossing of a kind, and so many after it. restored: so many crossings after the first of a kind.
    """

    def search(seen: CleanRun) -> Iterator[Schedule]:
        def places(kind: str) -> list[int]:
            return [one.number for one in seen.crossings if one.kind == kind]

        kind, which, after = copied
        moves = (Move(places(kind)[which] + after, "copy"), Move(places(restored[0])[0] + restored[1], "restore"))
        yield Schedule(moves, tuple((number, Mood(word)) for number, word in enumerate(beside, 1)))

    return search


def two_workers(*switches: str, beside: Sequence[str] = ()) -> Search:
    """Two workers; and the other goes on at each crossing of these kinds. beside: how the calls end."""

    def search(seen: CleanRun) -> Iterator[Schedule]:
        yield Schedule(moods=tuple((number, Mood(word)) for number, word in enumerate(beside, 1)), workers=2)
        yield from (Schedule((Move(one.number, "switch"),), workers=2) for one in seen.crossings if one.kind in switches)

    return search


def nothing(_seen: CleanRun) -> Iterator[Schedule]:
    """The clean run alone."""
    return iter(())


def both(*searches: Search) -> Search:
    """One after the other."""
    return lambda seen: chain.from_iterable(search(seen) for search in searches)


_singles = schedule_search.single_schedules


def everything(meanwhile: int) -> Search:
    """All that the lab tries singly, with so many others who do something meanwhile."""
    return lambda seen: _singles(seen, meanwhile)


def sampled(search: Search, every: int) -> Search:
    """Each so-manieth of them."""
    return lambda seen: islice(search(seen), 0, None, every)


def leap(which: int, *, beside: Sequence[str] = (), after: int = 0) -> Search:
    """A leap at each crossing at which it makes a difference. beside: how the calls end. after: of the clean run's first so many, none."""

    def search(seen: CleanRun) -> Iterator[Schedule]:
        ends = tuple((number, Mood(word)) for number, word in enumerate(beside, 1))
        yield from (Schedule((Move(one, "leap", which),), ends) for one in seen.told if one > after)

    return search


def around_the_first_find(which: int) -> Search:
    """A leap at each crossing where the first find is on its way, of a call that arrives late: the clean run has none."""
    return lambda seen: (Schedule((Move(one, "leap", which),), ((1, Mood.LATE),)) for one in range(seen.count - 5, seen.count + 25))


def there_and_back(first: int, *, beside: Sequence[str] = ()) -> Search:
    """The first leap at an early crossing, and the second at each later one."""

    def search(seen: CleanRun) -> Iterator[Schedule]:
        ends = tuple((number, Mood(word)) for number, word in enumerate(beside, 1))
        yield from (Schedule((Move(first, "leap", 1), Move(one, "leap", 2)), ends) for one in seen.told if one > first)

    return search


@contextmanager
def limited_to(search: Search) -> Iterator[None]:
    """While the block runs, the lab tries these schedules beside its clean run, and its mixtures as the budget says."""
    with mock.patch.object(schedule_search, "single_schedules", lambda seen, _meanwhile: search(seen)):
        yield
