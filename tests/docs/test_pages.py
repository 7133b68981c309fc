"""Every block of the pages is run, and nothing public is left unsaid."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import groundstate
from tests.docs.blocks import PAGES, ROOT, anchors_of, blocks_of, links_of
from tests.patience import LONG_RUN_S

SHOP = ROOT / "src" / "groundstate" / "demo" / "shop.py"
LANGUAGES = {"python", "console", "bash", "sh", "sql", "ini", "toml", "text", "json"}
MARKS = {"fresh", "refused", "run"}


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=page_name)
def test_each_block_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("GROUNDSTATE_APP", None)
    command = [sys.executable, "-m", "tests.docs.run_page", str(page)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LONG_RUN_S, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_each_block_says_what_it_is(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{page.name}:{block.line}: a block of language {block.language!r}"
        unknown = {mark for mark in block.marks if mark not in MARKS and not mark.startswith("file=")}
        assert not unknown, f"{page.name}:{block.line}: the runner knows no mark {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_each_link_between_pages_leads_somewhere(page: Path) -> None:
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors_of(target), f"{page.name} links to {link}, and that page has no such heading"


def test_the_shop_of_the_first_steps_is_the_demos_own() -> None:
    shown = [block.code for block in blocks_of(ROOT / "docs" / "first-steps.md") if block.file == "shop.py"]
    text = SHOP.read_text()
    docstring = ast.get_docstring(ast.parse(text), clean=False)
    own = text.replace(f'"""{docstring}"""', "").splitlines()
    own = [line for line in own if line.strip() and not line.startswith(("# ruff:", "from __future__"))]
    told = [line for code in shown for line in code.splitlines() if line.strip() and not line.startswith("from __future__")]
    assert told == own


@pytest.mark.parametrize("module", ["groundstate.demo.shop", "tools.torture.shop", "tests.docs.shop_of_the_design"])
def test_of_a_shop_that_is_right_nothing_is_told(module: str) -> None:
    """The shop of the first steps is the demo's. Of the apps of the pages the runner of each says so, and warnings are errors there."""
    program = f"from {module} import app; from tests.docs import run_page; app.check_declarations(); run_page.nothing_comes_again(app)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]  # in a process of its own: each declares its one app
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG_RUN_S, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_each_public_name_is_told_of_in_some_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    untold = [name for name in groundstate.__all__ if f"`{name}" not in text and f"{name}(" not in text]
    assert not untold
