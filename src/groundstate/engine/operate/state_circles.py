"""Follows a record from state to state, by the values that conditions demand and handlers set. Finds out how a record can come into the
same state again, and which reactions undo each other's changes without end.

It queries no database. A handler whose source cannot be followed gives no result, so that each result is certain.
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

STATES_MOST = 500  # the most states that are examined for one reaction
STARTS_MOST = 16  # the most states in which the search for one reaction begins

# Maps a column to what is known of its value: a constant, None (it is NULL), OTHER (it is not NULL), or ANY (nothing is known).
State = dict[str, Any]


@dataclass(frozen=True)
class WayBack:
    """The way in which a condition can come to hold again: the reactions run in this order, and the last of them sets `column` to `value`,
    which the condition demands.
    """

    reactions: tuple[str, ...]
    column: str
    value: Any


@dataclass
class StateSteps:
    """Follows a record through the reactions of one app on one database: each reaction is a step from one state to another."""

    specs: Sequence[ReactionSpec]
    _followed: dict[Callable[..., Any], list[State] | None] = field(default_factory=dict)

    @cached_property
    def _demands(self) -> dict[str, tuple[list[Demand], bool]]:
        return {spec.name: column_demands.demands_of_clauses(spec.clauses, spec.mapper) for spec in self.specs}

    # ---- states that recur -----------------------------------------------------------------------------------------------------------
    def find_way_back(self, spec: ReactionSpec) -> WayBack | None:
        """Return how a reaction's condition can hold again on a record after the reaction's handler has run; None if no way is found."""
        wanted = self._demands[spec.name][0]
        seen: list[State] = []
        for start in self._start_states(wanted):
            waiting: list[tuple[State, tuple[str, ...]]] = [
                (left, ())
                for left in self._states_after(spec, spec.handler, start)
                if any(one.is_met_by(left.get(one.attribute, ANY)) is False for one in wanted)
            ]
            while waiting and len(seen) < STATES_MOST:
                state, names = waiting.pop(0)
                if state in seen:
                    continue
                seen.append(state)
                for other in self._other_reactions_on_record(spec):
                    if not all(self._may_meet_demand(one, state) for one in self._demands[other.name][0]):
                        continue
                    for function in (other.handler, other.gave_up, other.expired):
                        for after in self._states_after(other, function, self._state_on_entry(other, state)):
                            way = (*names, other.name)
                            if all(self._may_meet_demand(one, after) for one in wanted):
                                set_ = next(one for one in wanted if not self._may_meet_demand(one, state))
                                return WayBack(way, set_.attribute, after[set_.attribute])
                            waiting.append((after, way))
        return None

    def _other_reactions_on_record(self, spec: ReactionSpec) -> Iterator[ReactionSpec]:
        for other in self.specs:
            if other is not spec and (issubclass(other.record, spec.record) or issubclass(spec.record, other.record)):
                yield other

    @staticmethod
    def _may_meet_demand(demand: Demand, state: State) -> bool:
        """Return whether a record in this state may satisfy a clause's demand on a column. A column that the state does not name may have
        any value.
        """
        return demand.attribute not in state or demand.is_met_by(state[demand.attribute]) is True

    def _state_on_entry(self, spec: ReactionSpec, state: State) -> State:
        """Return the state, extended by each column for which the condition of this reaction allows only one value."""
        told = {one.attribute: value for one in self._demands[spec.name][0] if (value := _only_value_allowed(one)) is not ANY}
        return {**told, **state}

    def _start_states(self, wanted: Sequence[Demand]) -> list[State]:
        """Return states in which a condition with these demands holds: one for each combination of the values that the demands list."""
        listed = [one for one in wanted if one.allowed is not None]
        states = [
            {one.attribute: value for one, (_, value) in zip(listed, some, strict=True)}
            for some in product(*(sorted(one.allowed or (), key=repr) for one in listed))
        ]
        filled = [one for one in wanted if one.allowed is None and (type(None), None) in one.excluded]
        return [{**dict.fromkeys((one.attribute for one in filled), OTHER), **state} for state in states[:STARTS_MOST]]

    def _states_after(self, spec: ReactionSpec, function: Function | None, state: State) -> list[State]:
        """Return the states that a record may have after the function ran on it in this state; an empty list if the function's source
        cannot be followed.
        """
        return [{**state, **after} for after in self._values_set_per_path(spec, function) or ()]

    def _values_set_per_path(self, spec: ReactionSpec, function: Function | None) -> list[State] | None:
        if function is None:
            return None
        if function.call not in self._followed:
            self._followed[function.call] = _keep_columns_only(spec, attributes_set_per_path(function.call))
        return self._followed[function.call]

    # ---- cycles without end ----------------------------------------------------------------------------------------------------------
    def find_endless_cycles(self) -> Iterator[list[str]]:
        """Yield the reaction names of each cycle of reactions that undo each other's changes without end.

        A reaction is considered only if it has no call and no due time, all its clauses are understood, and its handler has a single path.
        """
        found: set[frozenset[str]] = set()
        certain = [spec for spec in self.specs if self._is_fully_understood(spec)]
        for spec in certain:
            for start in self._start_states(self._demands[spec.name][0]):
                ring = self._find_cycle(spec, certain, start)
                if ring is not None and frozenset(ring) not in found:
                    found.add(frozenset(ring))
                    yield ring

    def _is_fully_understood(self, spec: ReactionSpec) -> bool:
        all_told = self._demands[spec.name][1] and bool(spec.clauses)
        return all_told and spec.call is None and spec.due is None and len(self._values_set_per_path(spec, spec.handler) or ()) == 1

    def _find_cycle(self, spec: ReactionSpec, certain: Sequence[ReactionSpec], start: State) -> list[str] | None:
        waiting, seen = [(self._states_after(spec, spec.handler, start)[0], [spec.name])], list[State]()
        while waiting and len(seen) < STATES_MOST:
            state, names = waiting.pop(0)
            if state in seen:
                continue
            seen.append(state)
            for other in certain:
                if not issubclass(spec.record, other.record) or not self._does_condition_hold(other, state):
                    continue
                if other is spec:
                    if len(names) > 1:
                        return names
                elif other.name not in names:
                    after = self._states_after(other, other.handler, state)[0]
                    # If the condition still holds after the handler, the reaction fails for lack of progress, and the cycle ends here.
                    if not self._does_condition_hold(other, after):
                        waiting.append((after, [*names, other.name]))
        return None

    def _does_condition_hold(self, spec: ReactionSpec, state: State) -> bool:
        return all(one.is_met_by(state.get(one.attribute, ANY)) is True for one in self._demands[spec.name][0])


def _only_value_allowed(demand: Demand) -> Any:
    if demand.allowed is None:
        return OTHER if (type(None), None) in demand.excluded else ANY
    return next(iter(demand.allowed))[1] if len(demand.allowed) == 1 else ANY


def _keep_columns_only(spec: ReactionSpec, found: list[Mapping[str, Any]] | list[State] | None) -> list[State] | None:
    """Return, for each path through a handler, the values that it sets in columns, as they are stored.

    Return None if some path sets an attribute that is neither a column nor a relationship: that attribute may set columns in turn.
    """
    columns = spec.mapper.column_attrs
    if found is None or any(name not in spec.mapper.attrs for one in found for name in one):
        return None
    return [
        {name: column_demands.as_demand_value(spec.mapper, name, value) for name, value in one.items() if name in columns} for one in found
    ]
