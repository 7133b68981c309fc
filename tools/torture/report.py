"""The report of a run, as Markdown or as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.torture import seen
from tools.torture.judge import INVARIANTS
from tools.torture.run import State

POLICIES = {
    "charge": "ask",
    "label": "same_key, with a lookup",
    "announce": "same_key, without",
    "listing": "again",
    "mail": "hold, or same_key",
    "insure": "ask, at one of two insurers",
    "thank": "ask",
}
REACTIONS = {name: call for call, names in (seen.REACTIONS | {"listing": ("listed",)}).items() for name in names}
LONGEST_FAULT = 2000  # characters of a fault in the report


def write_report(file: Path, states: Iterable[State]) -> None:
    """Write the reports of the runs to the file, as JSON if its name ends in .json, else as Markdown."""
    contents = [report_content(state) for state in states]
    if file.suffix == ".json":
        file.write_text(json.dumps({"torture": contents}, indent=2) + "\n")
    else:
        file.write_text("\n".join(_to_markdown(one) for one in contents))


def report_content(state: State) -> dict[str, Any]:
    """Return all that is reported of one run."""
    plan = state.plan
    return {
        "store": plan.store,
        "verdict": verdict_text(state),
        "faults": [fault[:LONGEST_FAULT] for fault in state.faults],
        "seed": plan.seed,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "groundstate": version("groundstate"),
            "SQLAlchemy": version("sqlalchemy"),
            "Python": platform.python_version(),
            "database": state.version,
            "system": f"{platform.system()} {platform.release()}, {os.cpu_count()} cores",
        },
        "plan": {"kills": plan.kills, "minutes": plan.minutes, "workers": plan.workers, "orders under way": plan.under_way},
        "kills": state.kills,
        "kills a second": round(state.kills / state.tormented_s, 1) if state.tormented_s else 0,
        "seconds": {"tormented": round(state.tormented_s), "in all": round(state.passed_s)},
        "disk made full by": state.disk,
        "troubles": _sort_counts(state.troubles),
        "how processes ended": _sort_counts(state.ends),
        "orders": dict(state.orders),
        "calls": _calls_content(state),
        "settled by a person": _sort_counts(state.said.deeds),
        "what the provider did": _sort_counts(state.provider.get("tricks", {})),
        "held at some time": _sort_counts(state.held),
        "held at the end": _sort_counts(state.held_at_the_end),
        "looked at": {name: state.checks.get(name, 0) for name in INVARIANTS},
        "excused": _sort_counts(state.excused),
        "errors logged, explained by the troubles": _sort_counts(state.said.explained),
    }


def verdict_text(state: State) -> str:
    """Return the verdict on the run as text."""
    return "nothing lost, doubled or unlisted" if state.has_passed else f"{len(state.faults)} faults"


def _calls_content(state: State) -> dict[str, dict[str, Any]]:
    """Return for each call its policy, its effects, and how its calls in doubt were settled."""
    finds, known = state.provider.get("finds", {}), state.provider.get("known keys", {})
    return {
        call: {
            "policy": policy,
            "effects": state.effects.get(call, 0),
            "calls in doubt": sum(count for name, count in state.doubts.items() if REACTIONS.get(name) == call),
            "finds": {said: finds[f"{call}: {said}"] for said in ("found", "absent", "unknown") if f"{call}: {said}" in finds},
            "called again under a known key": known.get(call, 0),
        }
        for call, policy in POLICIES.items()
    }


def _sort_counts(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _to_markdown(content: Mapping[str, Any]) -> str:
    lines = [f"### Torture run on {content['store']}, seed {content['seed']}: {content['verdict']}", ""]
    lines += [f"- FAULT {fault}" for fault in content["faults"]]
    lines += [f"{content['kills']:,} kills, {content['kills a second']} a second. {content['written']}.", ""]
    lines += [", ".join(f"{name} {of}" for name, of in content["versions"].items()) + ".", ""]
    lines += ["| call | policy | effects | in doubt | finds | again under a known key |", "| --- | --- | --- | --- | --- | --- |"]
    for call, row in content["calls"].items():
        finds = ", ".join(f"{count:,} {said}" for said, count in row["finds"].items()) or "-"
        cells = (
            call,
            row["policy"],
            f"{row['effects']:,}",
            f"{row['calls in doubt']:,}",
            finds,
            f"{row['called again under a known key']:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    told = {"verdict", "faults", "seed", "store", "written", "versions", "calls", "kills", "kills a second"}
    for name, of in content.items():
        if name not in told:
            lines += ["", f"**{name}**: {_to_text(of)}"]
    return "\n".join(lines) + "\n"


def _to_text(of: Any) -> str:
    if not isinstance(of, Mapping):
        return str(of)
    return "; ".join(f"{name} {count:,}" if isinstance(count, int) else f"{name} {count}" for name, count in of.items()) or "nothing"
