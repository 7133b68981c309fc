"""Installing groundstate gives pytest the fixture; unittest and a script use the same lab. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.patience import HANG_S

APP = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from groundstate import App, Store


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")


app = App("elsewhere", Store("sqlite:///never-opened.db", Base))


@app.on(Order, Order.status == "placed")
def packed(order: Order) -> None:
    order.status = "packed"
"""


def run(folder: Path, code: str, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(APP)
    (folder / "test_app.py").write_text(code)
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=HANG_S, check=False)


def test_pytest_has_the_fixture_under_warnings_as_errors_and_without_the_drivers_of_postgresql(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import sys\nsys.modules['psycopg'] = None\n")
    code = (
        "import sys\n\n"
        "def test_cheap():\n    assert 'sqlalchemy' not in sys.modules\n\n"
        "def test_packed(lab):\n"
        "    from app import Order, app\n"
        "    assert lab.crash_everywhere(app, Order(id=1), budget=2).kills > 3\n"
    )
    done = run(tmp_path, code, "-W", "error", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert not (tmp_path / "never-opened.db").exists()


def test_a_failure_under_pytest_prints_the_story_and_the_line(tmp_path: Path) -> None:
    code = (
        "from app import Order, app\n\n"
        "def test_packed(lab):\n"
        "    def look(session):\n        assert session.get(Order, 1).status == 'placed', 'it moved'\n"
        "    lab.crash_everywhere(app, Order(id=1), always=look, seed=7)\n"
    )
    done = run(tmp_path, code, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 1
    assert "it moved" in done.stdout
    assert "worker 1 commits UPDATE orders" in done.stdout
    assert "GROUNDSTATE_LAB='nothing' pytest test_app.py::test_packed" in done.stdout
    assert "seed 7" in done.stdout


def test_unittest_uses_the_same_lab(tmp_path: Path) -> None:
    code = (
        "import unittest\nfrom app import Order, app\nfrom groundstate.testing import Lab\n\n"
        "class Packs(unittest.TestCase):\n"
        "    def setUp(self):\n        self.lab = Lab()\n        self.addCleanup(self.lab.close)\n\n"
        "    def test_packed(self):\n        self.assertGreater(self.lab.crash_everywhere(app, Order(id=1), budget=2).kills, 3)\n"
    )
    done = run(tmp_path, code, "-W", "error", "-m", "unittest", "test_app")
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stderr


def test_a_script_uses_the_same_lab_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "from app import Order, app\nfrom groundstate.testing import Lab\n\n"
        "with Lab() as lab:\n    print(lab.crash_everywhere(app, Order(id=1), budget=2))\n    folder = lab._places[-1].folder\n"
        "assert not folder.exists()\n"
    )
    done = run(tmp_path, code, "-W", "error", "test_app.py")
    assert done.returncode == 0, done.stderr
    assert "runs over" in done.stdout
