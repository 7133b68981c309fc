"""Each number of a hazard or a rule, wherever it is written, has a section in the docs, and each test that these pages name exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

CONTRIBUTING = ROOT / "docs" / "contributing"
PAGES_OF = {"hazard": CONTRIBUTING / "hazards.md", "rule": CONTRIBUTING / "rules.md"}
WRITTEN_IN = ("src", "tests", "docs", "model", "tools", "benchmarks")
SUFFIXES = {".md", ".pml", ".py", ".toml"}
# The first number may stand in the next line, after a comment's sign. "3, 4 to 6 and 9" is one list.
REFERENCE = re.compile(r"(?<![a-z])(hazard|rule)s?(?:\.md)?[_\s#*]+(\d+(?:\s*(?:,|and|or|to)\s+\d+)*)", re.IGNORECASE)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
NAMED_MODULE = re.compile(r"`(?!tests/)([\w/]+\.(?:py|pml))`")
FOUND_LEAST = 400  # references in the whole repository: where fewer are found, it is the search that is wrong


def numbers_in(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield ('hazard' or 'rule', number, line) for each number that the text refers to; a range has all of its numbers."""
    for found in REFERENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        listed = re.sub(r"\s+", " ", found[2])
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", listed):
            for number in range(int(first), int(last or first) + 1):
                yield found[1].lower(), number, line


def sections(kind: str) -> list[int]:
    """Return the numbers of the sections of one page, in their order."""
    return [int(number) for number in re.findall(rf"(?m)^### {kind.capitalize()} (\d+): \S", PAGES_OF[kind].read_text())]


def files() -> Iterator[Path]:
    """Yield each file of the repository that may refer to a number."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in WRITTEN_IN:
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES)


def functions_of(path: Path) -> set[str]:
    return {one.name for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize(("kind", "count"), [("hazard", 65), ("rule", 40)])
def test_the_sections_have_all_numbers_in_their_order(kind: str, count: int) -> None:
    found = sections(kind)
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= count, "a number was taken away, and comments still refer to it"


def test_each_number_that_is_written_somewhere_has_a_section() -> None:
    known = {kind: set(sections(kind)) for kind in PAGES_OF}
    found = [(path, *reference) for path in files() for reference in numbers_in(path.read_text())]
    missing = [f"{path.relative_to(ROOT)}:{line}: {kind} {number}" for path, kind, number, line in found if number not in known[kind]]
    assert not missing
    assert len(found) >= FOUND_LEAST


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(hazard 46)", ["hazard 46"]),
        ("(hazards 1 to 3, 7)", ["hazard 1", "hazard 2", "hazard 3", "hazard 7"]),
        ("(hazards 5 and 42).", ["hazard 5", "hazard 42"]),
        ("def test_hazard_25_one_end", ["hazard 25"]),
        ("(hazard 25, rules.md 30)", ["hazard 25", "rule 30"]),
        ("unfair to waiters (rules.md\n        18)", ["rule 18"]),
        ("    # breaker (rule\n    # 15)", ["rule 15"]),
        ("(rules 2, 32)", ["rule 2", "rule 32"]),
        ("the rules of 2026; the five rules; ruled 3", []),
    ],
)
def test_references_are_found_however_they_are_written(text: str, expected: list[str]) -> None:
    assert [f"{kind} {number}" for kind, number, _ in numbers_in(text)] == expected


@pytest.mark.parametrize("kind", PAGES_OF)
def test_a_number_without_a_section_is_noticed(kind: str) -> None:
    beyond = len(sections(kind)) + 1
    assert {number for _, number, _ in numbers_in(f"({kind}s 1 to {beyond})")} - set(sections(kind)) == {beyond}


@pytest.mark.parametrize("page", [*PAGES_OF.values(), *sorted((ROOT / "docs" / "decisions").glob("*.md"))], ids=lambda page: page.name)
def test_each_test_and_module_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    named = NAMED_TEST.findall(text)
    known = {path: functions_of(ROOT / path) for path, _ in named if (ROOT / path).is_file()}
    assert not [f"{path}::{function}" for path, function in named if path not in known or (function and function not in known[path])]
    roots = (ROOT, ROOT / "src" / "groundstate")
    assert not [name for name in NAMED_MODULE.findall(text) if not any((root / name).is_file() for root in roots)]
