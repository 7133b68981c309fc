"""The public names: one list, which the running program, mypy and pyright see alike; each has one home, and its options can be read."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import groundstate
import groundstate.testing
from groundstate import App, StopResult
from tests.patience import LONG_RUN_S

NAMES = sorted(groundstate.__all__)
OPTIONS = ["call", "prepare", "due", "occurrence", "in_order", "per", "done_column", "overtaken", "retry", "name", "key_name"]


def test_what_is_public_can_be_imported_and_nothing_else_is_listed() -> None:
    assert [name for name in NAMES if not hasattr(groundstate, name)] == []
    assert sorted(dir(groundstate)) == NAMES


def test_each_public_name_has_one_home() -> None:
    homes = groundstate._HOMES
    listed = [name for names in homes.values() for name in names]
    assert len(listed) == len(set(listed))
    assert sorted([*listed, "not_done"]) == NAMES
    for module, names in homes.items():
        for name in names:
            found: Any = getattr(groundstate, name)
            assert getattr(found, "__module__", f"groundstate.{module}") == f"groundstate.{module}", name


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_both_type_checkers_see_each_public_name_with_a_type(checker: str, tmp_path: Path) -> None:
    lines = [f"from groundstate import {', '.join(NAMES)}", *(f"reveal_type({name})" for name in NAMES)]
    program = tmp_path / "names.py"
    program.write_text("\n".join(lines))
    options = ["--no-incremental", "--no-error-summary"] if checker == "mypy" else ["--pythonpath", sys.executable]
    command = [str(Path(sys.executable).with_name(checker)), *options, program.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONG_RUN_S, check=False)
    revealed = [line for line in done.stdout.splitlines() if "Revealed type is" in line or 'information: Type of "' in line]
    assert len(revealed) == len(NAMES), done.stdout + done.stderr
    assert [line for line in revealed if line.endswith(('is "Any"', 'is "Unknown"'))] == []


def test_the_options_of_on_are_seen_by_help() -> None:
    parameters = inspect.signature(App.on).parameters
    assert [name for name in parameters if name in OPTIONS] == OPTIONS
    assert not [one for one in parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD]


def _classes_in(annotation: Any) -> Iterator[type]:
    """Yield the classes of groundstate in the annotation of a return value."""
    inside = get_args(annotation)
    for part in inside:
        yield from _classes_in(part)
    if not inside and inspect.isclass(annotation) and annotation.__module__.partition(".")[0] == "groundstate":
        yield annotation


def _public_functions() -> Iterator[tuple[str, Any]]:
    for module in (groundstate, groundstate.testing):
        for name in module.__all__:
            public = getattr(module, name)
            if inspect.isfunction(public):
                yield name, public
            for owner in public.__mro__ if inspect.isclass(public) else ():
                for attribute, member in vars(owner).items() if owner.__module__.startswith("groundstate.") else ():
                    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                    if inspect.isfunction(function) and not attribute.startswith("_"):
                        yield f"{name}.{attribute}", function


def test_each_type_that_a_public_function_returns_can_be_imported() -> None:
    public = {getattr(module, name) for module in (groundstate, groundstate.testing) for name in module.__all__ if name != "not_done"}
    functions = dict(_public_functions())
    assert {"App.stop", "App.run_until_idle", "Store.settings", "Lab.crash_everywhere"} <= set(functions)
    returned = {name: list(_classes_in(get_type_hints(function).get("return"))) for name, function in functions.items()}
    assert StopResult in returned["App.stop"]
    # What a decorator returns until it is given its function has a name with an underscore.
    missing = {
        name: one.__qualname__ for name, classes in returned.items() for one in classes if one not in public and one.__name__[0] != "_"
    }
    assert missing == {}
