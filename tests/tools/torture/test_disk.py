"""The disk that can be full, by either of its ways; and signals, which reach children of the run alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tools.torture.disk import FileLimit

from tests.patience import HANG_S

WRITER = """
import sys
for line in sys.stdin:
    try:
        with open(sys.argv[1], "wb") as file:
            file.write(b"x" * 8192)
        print("written", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


def test_a_limit_on_files_makes_a_disk_full_for_one_process_and_lets_it_write_again(tmp_path: Path) -> None:
    disk = FileLimit()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        said = []
        for act in (disk.free, lambda: disk.fill(0), disk.free):
            act()
            disk.apply_limit([writer.pid])
            writer.stdin.write("now\n")
            writer.stdin.flush()
            said.append(writer.stdout.readline().strip())
        writer.stdin.close()
    assert said == ["written", "File too large", "written"]


def test_a_tmpfs_of_its_own_is_full_and_free_again_and_nobody_else_sees_it(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from tools.torture.disk import create_disk, unmount_tmpfs

        folder = Path(sys.argv[1])
        disk = create_disk(folder, 2, by_limit=True)
        print(disk.name)
        for number, act in enumerate((disk.free, lambda: disk.fill(0), disk.free)):
            act()
            try:
                (folder / f"file{number}").write_bytes(b"x" * 100_000)
                print("written")
            except OSError as error:
                print(error.strerror)
        unmount_tmpfs(folder)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    told = done.stdout.splitlines()
    if os.geteuid() == 0 and told[:1] == ["a tmpfs"]:
        assert told[1:] == ["written", "No space left on device", "written"], done.stderr
        assert list(tmp_path.iterdir()) == []
    else:  # without the rights to mount
        assert told[:1] == ["RLIMIT_FSIZE"], done.stderr


def test_a_zygote_sends_no_signal_to_a_process_that_is_not_its_child(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.torture.zygote", str(tmp_path / "log")]
    environment = os.environ | {"TORTURE_DATABASE": f"sqlite:///{tmp_path / 'none.db'}"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        told = f"signal {other.pid} 9\nperson\n".encode()
        done = subprocess.run(command, env=environment, input=told, capture_output=True, timeout=HANG_S, check=True)
        assert done.stdout.startswith(b"born "), done.stderr  # it obeyed what came after
        assert other.stdin is not None
        assert other.poll() is None
        other.stdin.write(b"\n")
        other.stdin.close()
    assert other.returncode == 0
