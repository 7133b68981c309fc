"""The commands of a deploy, as the torture gives them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tools.torture.deploy import Deploys


def test_what_a_command_waits_for_can_come_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "room"
    command = tmp_path / "waits"
    command.write_text(f"#!{sys.executable}\nimport os\nwhile not os.path.exists(os.environ['ROOM']): pass\n")
    command.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(command))
    judge: Any = None
    deploys = Deploys({**os.environ, "ROOM": str(room)}, judge)
    deploys.meanwhile = room.touch
    assert deploys.run_trust()
