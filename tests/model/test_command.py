"""The command that checks the model: its cases, its verdict, and what it says where the model checker is missing. Runs no Spin."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from model.cases import CASES, Case
from model.run import Result

from model import __main__ as command
from model import run

DOCS = Path(run.HERE).parent / "docs" / "model.md"
TEXTS = {file.name: file.read_text() for file in Path(run.HERE).glob("*.pml")}


def result(verdict: str, *rows: int) -> Result:
    return Result(verdict, 7, 0.1, 50, frozenset(rows))


def test_every_hole_that_can_be_put_into_a_model_has_a_case() -> None:
    holes = {name for text in TEXTS.values() for name in re.findall(r"\b([HML]_[A-Z]+)\b", text)}
    flags = {flag.removeprefix("-D") for case in CASES for flag in case.flags}
    assert holes <= flags


def test_every_case_has_a_name_of_its_own_and_a_model() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.model for case in CASES} <= set(TEXTS)


def test_the_invariants_have_names() -> None:
    assert {"Listed", "AtMostOnce", "StickyDoubt", "Fenced", "NotLost", "NothingAtRest"} <= set(run.invariant_names().values())


@pytest.mark.parametrize(
    ("caught", "verdict", "surprise"),
    [
        (False, "pass", False),
        (False, "Listed", True),
        (False, "cut off", True),
        (True, "Listed", False),
        (True, "pass", True),
        (True, "cut off", True),
        (True, "RaiseMAXC", True),
        (True, "error: spin: no such file", True),
    ],
)
def test_what_is_a_surprise(caught: bool, verdict: str, surprise: bool) -> None:
    case = Case("one", "protocol.pml", "POL=LOOKUP", "nothing", caught=caught)
    assert command.is_surprising(case, result(verdict)) is surprise


def test_what_the_checker_says_is_understood() -> None:
    said = "ROW 7\nROW 12\npan:1: assertion violated ((A_st[0]!=0)||(101==0)) (at depth 9)\n"
    said += "   4.5e+06 states, stored\n  120.5\ttotal actual memory usage\n"
    understood = run._parse_result(said, 2.0)
    assert understood == Result("Listed", 4_500_000, 2.0, 120, frozenset({7, 12}))


def test_a_run_that_went_as_it_must_is_told_from_one_that_did_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "missing_tools", lambda: None)
    monkeypatch.setattr(run, "check_model", lambda *_words, **_settings: result("pass"))
    assert command.main(["--only", "lookup, quick"]) == 0
    assert command.main(["--only", "M_UNFENCED"]) == 1
    assert "a surprise" in capsys.readouterr().out


def test_a_row_that_is_never_reached_fails_the_whole_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "missing_tools", lambda: None)
    by_flags = {case.flags: case for case in CASES}
    reached = [number for number in command.all_row_numbers() if number != 44]
    monkeypatch.setattr(run, "check_model", lambda _model, flags, **_: result("Listed" if by_flags[flags].caught else "pass", *reached))
    assert command.main([]) == 1
    assert "never: [44]" in capsys.readouterr().out


def test_where_spin_is_missing_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "spin" else f"/usr/bin/{tool}")
    assert command.main(["--quick"]) == 2
    assert "apt-get install spin" in capsys.readouterr().err


def test_a_case_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "missing_tools", lambda: None)
    assert command.main(["--only", "no such case"]) == 2
    assert command.main(["--story", "no such case"]) == 2


def test_a_report_has_every_case_in_the_order_of_the_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "missing_tools", lambda: None)
    monkeypatch.setattr(run, "check_model", lambda *_words, **_settings: result("pass"))
    command.main(["--report", str(tmp_path / "report.md")])
    assert [line.split(" | ")[0] for line in (tmp_path / "report.md").read_text().splitlines()[2:]] == [f"| {case.name}" for case in CASES]


def test_the_docs_tell_what_came_of_every_case() -> None:
    told = [line.strip("| ").split(" | ") for line in DOCS.read_text().splitlines() if re.match(r"\| .* \| (pass|caught) \| ", line)]
    assert [(name, model, must, shows) for name, model, must, *_figures, shows in told] == [
        (case.name, case.model.removesuffix(".pml"), "caught" if case.caught else "pass", case.says) for case in CASES
    ]
    assert not [name for name, _model, must, came, *_rest in told if (must == "pass") is not (came == "pass")]
