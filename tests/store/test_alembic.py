"""Migrations that Alembic writes by itself leave our tables as they are, whatever a project's env.py says of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from groundstate.store.tables import metadata as ours
from tests.patience import HANG_S

MODELS = """
from datetime import datetime
from groundstate import UtcDateTime
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    placed_at: Mapped[datetime] = mapped_column(UtcDateTime)

"""
RICH = """
from sqlalchemy import ARRAY, DateTime, ForeignKey, JSON, String, func
from sqlalchemy.dialects import postgresql

class Tick(Base):
    __tablename__ = "ticks"
    at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    old: Mapped[datetime | None] = mapped_column(UtcDateTime(naive="utc"), index=True)
    made: Mapped[datetime] = mapped_column(UtcDateTime, server_default=func.now())
    many: Mapped[list[datetime]] = mapped_column(ARRAY(UtcDateTime).with_variant(JSON(), "sqlite"))
    more: Mapped[list[datetime]] = mapped_column(JSON().with_variant(postgresql.ARRAY(UtcDateTime(naive="utc")), "postgresql"))
    either: Mapped[datetime] = mapped_column(UtcDateTime(naive="utc").with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql"))
    other: Mapped[datetime] = mapped_column(DateTime(timezone=True).with_variant(UtcDateTime(), "sqlite"))

class Tock(Base):
    __tablename__ = "tocks"
    tick: Mapped[datetime] = mapped_column(ForeignKey(Tick.at), primary_key=True)
"""
WRITES = """
from datetime import UTC, datetime
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
import models, sys

at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
many = [at] if sys.argv[1].startswith("postgresql") else ["x"]
engine = create_engine(sys.argv[1])
with Session(engine) as session, session.begin():
    session.add(models.Tick(at=at, old=at.replace(tzinfo=None), many=many, more=many, either=at, other=at))
    session.flush()
    session.add(models.Tock(tick=at))
with Session(engine) as session:
    tick = session.get_one(models.Tick, at)
    assert tick.at == tick.old == tick.either == tick.other == at, tick.__dict__
    assert tick.many == tick.more == many
    assert abs(tick.made - datetime.now(UTC)).total_seconds() < 600
    assert session.get_one(models.Tock, at).tick == at
"""
BY_THEIR_OWN = "models.Base.metadata"
WITHOUT_OURS = "autogenerate_plugins=['alembic.autogenerate.*', '~alembic.autogenerate.groundstate'],"  # as in an older Alembic
FROM_OURS = "__import__('groundstate.store.migrations', fromlist=['metadata'])"
OURS_FOR_OLDER = f"{WITHOUT_OURS} include_name={FROM_OURS}.include_name, render_item={FROM_OURS}.render_item,"
BUILT_IN = ["schemas", "tables", "types", "constraints", "defaults", "comments"]


def run_in(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Project:
    """A folder that `alembic init` made, for one database."""

    def __init__(self, folder: Path, url: str, template: Path) -> None:
        self.folder, self.url = folder, url
        self.engine = create_engine(url)
        shutil.copytree(template, folder, dirs_exist_ok=True)
        (folder / "models.py").write_text(MODELS)
        ini = folder / "alembic.ini"
        lines = ini.read_text().splitlines()
        ini.write_text("\n".join(f"sqlalchemy.url = {url}" if line.startswith("sqlalchemy.url") else line for line in lines))
        self._written = (folder / "migrations" / "env.py").read_text()

    def env(self, target: str, configured: str = "") -> None:
        """Writes env.py as Alembic's own template is filled in: the target, and what else `context.configure` is given."""
        told = self._written.replace("target_metadata = None", f"import models\ntarget_metadata = {target}")
        told = told.replace("connection=connection,", f"connection=connection, {configured}")
        (self.folder / "migrations" / "env.py").write_text(told)

    def alembic(self, *commands: Sequence[str]) -> str:
        """Each command's words; all of them by one process, since importing takes longer than what they do."""
        return self.run("-c", f"from alembic.config import main\nfor words in {commands!r}: main(words)")

    def run(self, *words: str) -> str:
        return run_in(self.folder, *words)

    def revise(self, *then: Sequence[str]) -> str:
        """A revision by autogenerate, carried out, and further commands; returns what it does, and all that was said."""
        before = set((self.folder / "migrations" / "versions").glob("*.py"))
        said = self.alembic(["revision", "--autogenerate", "-m", "next"], ["upgrade", "head"], *then)
        (made,) = set((self.folder / "migrations" / "versions").glob("*.py")) - before
        return made.read_text() + said

    @property
    def tables(self) -> set[str]:
        return set(inspect(self.engine).get_table_names()) - {"alembic_version"}

    def make_ours(self) -> None:
        ours.create_all(self.engine)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `alembic init` makes."""
    folder = tmp_path_factory.mktemp("alembic")
    run_in(folder, "-m", "alembic", "init", "migrations")
    return folder


@pytest.fixture
def project(tmp_path: Path, database_url: str, template: Path) -> Iterator[Project]:
    """On each store in turn, with groundstate's tables there already, as after `groundstate init`."""
    made = Project(tmp_path, database_url, template)
    made.make_ours()
    yield made
    made.engine.dispose()


def does_nothing_to_ours(revision: str) -> bool:
    """Whether none of its operations names a table of ours; what Alembic logs on the way is aside."""
    operations = [line for line in revision.splitlines() if "op." in line or line.startswith("    ")]
    return not any("groundstate_" in line for line in operations)


def test_an_env_that_knows_the_projects_metadata_alone_leaves_our_tables_as_they_are(project: Project) -> None:
    project.env(BY_THEIR_OWN)
    revision = project.revise(["check"])
    assert "create_table('orders'" in revision
    assert "'placed_at', groundstate.UtcDateTime()" in revision
    assert "import groundstate\n" in revision
    assert "groundstate.store" not in revision, "a migration is kept for longer than a name inside of groundstate"
    assert does_nothing_to_ours(revision), revision
    assert project.tables == {"orders", *ours.tables}
    assert "left as they are" in revision, "who reads Alembic's log must be told why"
    assert "No new upgrade operations" in revision


@pytest.mark.parametrize("configured", ["", OURS_FOR_OLDER], ids=["by_the_plugin", "by_hand"])
def test_an_instant_is_named_with_its_import_wherever_a_model_has_it(project: Project, configured: str) -> None:
    (project.folder / "models.py").write_text(MODELS + RICH)
    project.env(BY_THEIR_OWN, configured)
    revision = project.revise()
    assert "groundstate.store" not in revision
    assert "sa.Column('at', groundstate.UtcDateTime(), nullable=False)" in revision
    assert "groundstate.UtcDateTime(naive='utc').with_variant(postgresql.TIMESTAMP(timezone=True), 'postgresql')" in revision
    assert "sa.DateTime(timezone=True).with_variant(groundstate.UtcDateTime(), 'sqlite')" in revision
    assert "sa.ARRAY(groundstate.UtcDateTime()).with_variant(sa.JSON(), 'sqlite')" in revision
    assert ".with_variant(postgresql.ARRAY(groundstate.UtcDateTime(naive='utc')), 'postgresql')" in revision
    project.run("-c", WRITES, project.url)
    assert "No new upgrade operations" in project.alembic(["check"], ["downgrade", "base"])
    assert project.tables == set(ours.tables)


def test_a_column_that_becomes_an_instant_is_altered_by_its_public_name(project: Project) -> None:
    (project.folder / "models.py").write_text(
        MODELS.replace("mapped_column(UtcDateTime)", "mapped_column(String)").replace("Mapped[datetime]", "Mapped[str]")
    )
    project.env(BY_THEIR_OWN, "render_as_batch=True,")
    project.revise()
    (project.folder / "models.py").write_text(MODELS)
    project.alembic(["revision", "--autogenerate", "-m", "altered"])
    newest = max((project.folder / "migrations" / "versions").glob("*_altered.py"))
    assert "type_=groundstate.UtcDateTime()" in newest.read_text()
    assert "import groundstate\n" in newest.read_text()


def test_a_table_of_the_project_that_is_gone_is_still_dropped(project: Project) -> None:
    project.env(BY_THEIR_OWN)
    project.revise()
    (project.folder / "models.py").write_text(MODELS.partition("class Order")[0])
    assert "drop_table('orders')" in project.revise()
    assert project.tables == set(ours.tables)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in_a_list"])
def test_an_env_that_targets_our_metadata_makes_our_tables_and_then_finds_no_difference(
    tmp_path: Path, database_url: str, template: Path, *, alone: bool
) -> None:
    project = Project(tmp_path, database_url, template)
    our_target = f"{FROM_OURS}.metadata"
    project.env(our_target if alone else f"[{BY_THEIR_OWN}, {our_target}]")
    revision = project.revise(["check"])
    for name in ours.tables:
        assert f"create_table('{name}'" in revision
    assert project.tables >= set(ours.tables)
    assert "No new upgrade operations" in revision
    project.engine.dispose()


@pytest.mark.parametrize(
    "configured",
    [
        f"autogenerate_plugins={[f'alembic.autogenerate.{name}' for name in (*BUILT_IN, 'groundstate')]},",
        "autogenerate_plugins=['alembic.autogenerate.*', '~alembic.autogenerate.comments'],",
    ],
    ids=["by_name", "by_a_pattern"],
)
def test_an_env_that_sets_its_plugins_names_ours(project: Project, configured: str) -> None:
    project.env(BY_THEIR_OWN, configured)
    assert does_nothing_to_ours(project.revise())
    assert project.tables == {"orders", *ours.tables}


def test_without_the_plugin_our_tables_would_be_dropped_and_include_name_leaves_them(project: Project) -> None:
    project.env(BY_THEIR_OWN, WITHOUT_OURS)
    project.alembic(["revision", "--autogenerate", "-m", "careless"])
    (careless,) = (project.folder / "migrations" / "versions").glob("*.py")
    assert "drop_table('groundstate_attempt')" in careless.read_text(), "or else this test tells nothing of the filter"
    careless.unlink()
    project.env(BY_THEIR_OWN, OURS_FOR_OLDER)
    assert does_nothing_to_ours(project.revise())
    assert project.tables == {"orders", *ours.tables}


def test_in_another_schema_our_tables_are_left_alone_too(tmp_path: Path, postgres_url: str, template: Path) -> None:
    """As where the worker's role finds them by its own search_path, and Alembic's role sees all schemas."""
    project = Project(tmp_path, postgres_url, template)
    with project.engine.begin() as connection:
        connection.exec_driver_sql("create schema ours")
        connection.exec_driver_sql("set local search_path = ours")
        ours.create_all(connection)
    project.env(BY_THEIR_OWN, "include_schemas=True,")
    assert does_nothing_to_ours(project.revise())
    assert set(inspect(project.engine).get_table_names(schema="ours")) == set(ours.tables)
    project.engine.dispose()
