"""Follows records from state to state, by what clauses demand and handlers set: finds states that recur, and rings that never end.

It queries no database. Where a handler cannot be followed it says nothing, so that what it does say is certain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from groundstate.engine.operate.source_constants import attributes_set_per_path
from groundstate.rules import column_demands
from groundstate.rules.column_demands import ANY, OTHER, Demand
from groundstate.rules.specs import Function, ReactionSpec

STATES_MOST = 500  # states that are followed for one reaction
STARTS_MOST = 16  # states from which one reaction is followed

State = dict[str, Any]  # known values by column: a constant, None, OTHER or ANY; other columns are unknown


@dataclass(frozen=True)
class Way:
    """How a condition comes to hold again: these reactions run, and the last one sets `column` to a value that the condition demands."""

    reactions: tuple[str, ...]
    column: str
    value: Any


@dataclass
class Steps:
    """The reactions of one app on one database, as steps between states of a record."""

    specs: Sequence[ReactionSpec]
    _followed: dict[Callable[..., Any], list[State] | None] = field(default_factory=dict)

    @cached_property
    def _demands(self) -> dict[str, tuple[list[Demand], bool]]:
        return {spec.name: column_demands.of_all(spec.clauses, spec.mapper) for spec in self.specs}

    # ---- a state that comes again --------------------------------------------------------------------------------------------------
    def comes_again(self, spec: ReactionSpec) -> Way | None:
        """Return how the condition of `spec` can hold again on a record that its handler has run on; None if no way is found."""
        wanted = self._demands[spec.name][0]
        seen: list[State] = []
        for start in self._starts(wanted):
            waiting: list[tuple[State, tuple[str, ...]]] = [
                (left, ())
                for left in self._left(spec, spec.handler, start)
                if any(one.met_by(left.get(one.attribute, ANY)) is False for one in wanted)
            ]
            while waiting and len(seen) < STATES_MOST:
                state, names = waiting.pop(0)
                if state in seen:
                    continue
                seen.append(state)
                for other in self._others(spec):
                    if not all(self._may_meet(one, state) for one in self._demands[other.name][0]):
                        continue
                    for function in (other.handler, other.gave_up, other.expired):
                        for after in self._left(other, function, self._entered(other, state)):
                            way = (*names, other.name)
                            if all(self._may_meet(one, after) for one in wanted):
                                set_ = next(one for one in wanted if not self._may_meet(one, state))
                                return Way(way, set_.attribute, after[set_.attribute])
                            waiting.append((after, way))
        return None

    def _others(self, spec: ReactionSpec) -> Iterator[ReactionSpec]:
        for other in self.specs:
            if other is not spec and (issubclass(other.record, spec.record) or issubclass(spec.record, other.record)):
                yield other

    @staticmethod
    def _may_meet(demand: Demand, state: State) -> bool:
        """Whether the state may satisfy a clause's demand on a column. A column about which nothing is known may have any value."""
        return demand.attribute not in state or demand.met_by(state[demand.attribute]) is True

    def _entered(self, spec: ReactionSpec, state: State) -> State:
        """Return the state, with what is known in addition because the condition of `spec` holds."""
        told = {one.attribute: value for one in self._demands[spec.name][0] if (value := _single(one)) is not ANY}
        return {**told, **state}

    def _starts(self, wanted: Sequence[Demand]) -> list[State]:
        """Return the states in which the condition holds, as far as its demands `wanted` list values."""
        listed = [one for one in wanted if one.allowed is not None]
        states = [
            {one.attribute: value for one, (_, value) in zip(listed, some, strict=True)}
            for some in product(*(sorted(one.allowed or (), key=repr) for one in listed))
        ]
        filled = [one for one in wanted if one.allowed is None and (type(None), None) in one.excluded]
        return [{**dict.fromkeys((one.attribute for one in filled), OTHER), **state} for state in states[:STARTS_MOST]]

    def _left(self, spec: ReactionSpec, function: Function | None, state: State) -> list[State]:
        """Return the states that a record with this state may have after the function ran; an empty list if it cannot be followed."""
        return [{**state, **after} for after in self._ends(spec, function) or ()]

    def _ends(self, spec: ReactionSpec, function: Function | None) -> list[State] | None:
        if function is None:
            return None
        if function.call not in self._followed:
            self._followed[function.call] = _of_columns(spec, attributes_set_per_path(function.call))
        return self._followed[function.call]

    # ---- a ring that never ends ----------------------------------------------------------------------------------------------------
    def endless(self) -> Iterator[list[str]]:
        """Yield the names of reactions that undo each other for ever.

        It looks only at reactions without a call or due time, whose clauses are all understood, and whose handler has one path.
        """
        found: set[frozenset[str]] = set()
        certain = [spec for spec in self.specs if self._is_certain(spec)]
        for spec in certain:
            for start in self._starts(self._demands[spec.name][0]):
                ring = self._ring(spec, certain, start)
                if ring is not None and frozenset(ring) not in found:
                    found.add(frozenset(ring))
                    yield ring

    def _is_certain(self, spec: ReactionSpec) -> bool:
        all_told = self._demands[spec.name][1] and bool(spec.clauses)
        return all_told and spec.call is None and spec.due is None and len(self._ends(spec, spec.handler) or ()) == 1

    def _ring(self, spec: ReactionSpec, certain: Sequence[ReactionSpec], start: State) -> list[str] | None:
        waiting, seen = [(self._left(spec, spec.handler, start)[0], [spec.name])], list[State]()
        while waiting and len(seen) < STATES_MOST:
            state, names = waiting.pop(0)
            if state in seen:
                continue
            seen.append(state)
            for other in certain:
                if not issubclass(spec.record, other.record) or not self._surely_holds(other, state):
                    continue
                if other is spec:
                    if len(names) > 1:
                        return names
                elif other.name not in names:
                    after = self._left(other, other.handler, state)[0]
                    if not self._surely_holds(other, after):  # else it fails, since it makes no progress
                        waiting.append((after, [*names, other.name]))
        return None

    def _surely_holds(self, spec: ReactionSpec, state: State) -> bool:
        return all(one.met_by(state.get(one.attribute, ANY)) is True for one in self._demands[spec.name][0])


def _single(demand: Demand) -> Any:
    if demand.allowed is None:
        return OTHER if (type(None), None) in demand.excluded else ANY
    return next(iter(demand.allowed))[1] if len(demand.allowed) == 1 else ANY


def _of_columns(spec: ReactionSpec, found: list[Mapping[str, Any]] | list[State] | None) -> list[State] | None:
    """Return the values that are set, for columns only, as they are stored.

    None if an attribute is set that is neither a column nor a relationship, since it may set columns in turn.
    """
    columns = spec.mapper.column_attrs
    if found is None or any(name not in spec.mapper.attrs for one in found for name in one):
        return None
    return [
        {name: column_demands.as_demand_value(spec.mapper, name, value) for name, value in one.items() if name in columns} for one in found
    ]
