"""What is installed: what a user needs, with its types, and nothing that only developers need."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import LONG_RUN_S

ROOT = Path(__file__).parents[2]
OURS = {
    "__init__",
    "__main__",
    "app",
    "cli",
    "clock",
    "demo",
    "engine",
    "not_done",
    "py",
    "rules",
    "store",
    "telemetry",
    "testing",
    "transport",
    "values",
}
USES = """
from groundstate import App, InDoubt, Store

app = App("typed", Store("sqlite://"))
policy: InDoubt = InDoubt.hold()
number: int = App("wrong", 7)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built of the sources as they are."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_RUN_S, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("groundstate-*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def test_the_wheel_has_what_a_user_needs_and_nothing_that_only_we_need(wheel: zipfile.ZipFile) -> None:
    files = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert "groundstate/py.typed" in files
    assert {name.split("/")[0] for name in files} == {"groundstate", "groundstate_pytest.py"}
    assert {name.split("/")[1].partition(".")[0] for name in files if name.startswith("groundstate/")} == OURS
    needless = [name for name in files if any(word in name for word in ("torture", "brokers", "watchdog", "servers", "test_"))]
    assert needless == []


def test_the_page_of_the_package_has_no_relative_link_and_says_where_the_sources_are(wheel: zipfile.ZipFile) -> None:
    (file,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    page = wheel.read(file).decode()
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) == len(re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    assert {line.split(" ")[1].rstrip(",") for line in page.splitlines() if line.startswith("Project-URL: ")} >= {
        "Documentation",
        "Source",
        "Issues",
    }


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_both_type_checkers_see_the_types_of_what_is_installed(wheel: zipfile.ZipFile, tmp_path: Path, checker: str) -> None:
    python = _environment_with(wheel, tmp_path / "environment")
    (tmp_path / "uses.py").write_text(USES)
    program = str(Path(sys.executable).with_name(checker))
    options = {"mypy": ["--python-executable", python, "--no-incremental"], "pyright": ["--pythonpath", python]}[checker]
    done = subprocess.run([program, *options, "uses.py"], cwd=tmp_path, capture_output=True, text=True, timeout=LONG_RUN_S, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stdout.splitlines() if "error" in line and "uses.py" in line]
    assert len(errors) == 2, errors  # the store is no number, and an App is none either: both are seen by the types alone


def _environment_with(wheel: zipfile.ZipFile, folder: Path) -> str:
    """The interpreter of an environment in which the wheel is installed, with the dependencies of this one, but not with the sources."""
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    wheel.extractall(packages)
    # A .pth file in a folder that is itself named in one is not read: so the editable installation of the sources is not seen.
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return str(folder / "bin" / "python")
