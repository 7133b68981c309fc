"""The command's first moment: before anything of it or of the app is imported, a signal to end is heard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import groundstate.__main__ as command
from tests.patience import HANG_S, until

# An app that takes as long to import as the test needs.
MODULE = """
import pathlib, threading
pathlib.Path("importing").touch()
threading.Event().wait()
"""


def test_a_signal_that_comes_while_the_app_is_imported_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(MODULE)
    found = os.pathsep.join([str(tmp_path), *sys.path])
    command_line = [sys.executable, "-m", "groundstate", "run", "heavy:app"]
    with subprocess.Popen(command_line, cwd=tmp_path, env={**os.environ, "PYTHONPATH": found}) as process:
        try:
            until((tmp_path / "importing").exists)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == 128 + signal.SIGTERM, "by a handler, which process 1 of a container needs"
        finally:
            process.kill()


def test_nothing_is_imported_before_the_handler_is_set() -> None:
    looks = (
        "import signal, sys; before = set(sys.modules); import groundstate.__main__\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('groundstate')))"
    )
    out = subprocess.run([sys.executable, "-c", looks], capture_output=True, text=True, timeout=HANG_S, check=True).stdout
    assert not {"typer", "sqlalchemy", "pydantic", "asyncio", "logging"} & set(out.replace("'", " ").replace(",", " ").split()), out


def test_the_installed_command_is_the_same() -> None:
    (script,) = [one for one in entry_points(group="console_scripts") if one.name == "groundstate"]
    assert script.value == f"{command.__name__}:main"
