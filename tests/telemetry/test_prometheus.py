"""The metrics as Prometheus reads them, by prometheus_client's own parser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import App, Store
from groundstate.app.declared import databases_of
from groundstate.store.safe_name import label_of_url
from groundstate.telemetry import cached_queries
from groundstate.telemetry.metrics import MEASURES
from groundstate.telemetry.prometheus import Collector, Page
from tests.docs.blocks import ROOT
from tests.engine.operate.test_several_stores import unused_url
from tests.patience import until
from tests.telemetry.conftest import Shop, ended, made


class Scraped:
    """One scrape of a page."""

    def __init__(self, page: Page) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(page.render().decode())}

    def value(self, name: str, **labels: str) -> float:
        """The one value that has these labels, and perhaps others."""
        family = self.families[name.removesuffix("_total")]
        found = [one.value for one in family.samples if one.name == name and labels.items() <= one.labels.items()]
        assert len(found) == 1, (name, labels, family.samples)
        return found[0]

    def has(self, name: str, **labels: str) -> bool:
        family = self.families.get(name.removesuffix("_total"))
        return family is not None and any(labels.items() <= one.labels.items() for one in family.samples)


@pytest.fixture
def page(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setattr(cached_queries, "FRESH_S", 0.0)
    found = Page(shop.app)
    yield found
    found.close()


def test_what_the_database_says_is_told_without_a_worker(shop: Shop, page: Page) -> None:
    shop.order("placed")
    shop.order("mailed")
    shop.order("mailed")
    shop.sql("INSERT INTO orders (status, at) VALUES ('packed', '2020-01-01 00:00:00+00:00')")
    scraped = Scraped(page)
    assert scraped.value("groundstate_pending_rows", reaction="paid") == 1
    assert scraped.value("groundstate_pending_rows", reaction="packed") == 2
    assert scraped.value("groundstate_pending_oldest_seconds", reaction="archived") > 365 * 86400
    assert scraped.value("groundstate_store_answers") == 1
    assert "groundstate_worker_up" not in scraped.families


def test_attempts_of_undeclared_reactions_are_counted_but_for_rows_that_were_left_out(shop: Shop, page: Page) -> None:
    now = "2020-01-01 00:00:00.000000+00:00"
    for record, why in (("1", "for a reason"), ("2", "baseline")):
        shop.sql(
            "INSERT INTO groundstate_attempt (app, reaction, record, occurrence, state, worker, call, call_no, unsure, since, first_at,"
            " deadline, failures, why, together)"
            " VALUES (:app, 'shipped', :record, '', 'held', 7, 1, 0, false, :now, :now, :now, 0, :why, 0)",
            app=shop.app.name, record=record, now=now, why=why,
        )  # fmt: skip
    assert Scraped(page).value("groundstate_undeclared_attempts", reaction="shipped") == 1


def test_a_row_without_a_due_time_is_as_old_as_it_was_seen_waiting(shop: Shop, page: Page) -> None:
    shop.order("mailed")
    Scraped(page)
    until(lambda: Scraped(page).value("groundstate_pending_oldest_seconds", reaction="packed") > 0.05)
    shop.sql("DELETE FROM orders")
    assert Scraped(page).value("groundstate_pending_oldest_seconds", reaction="packed") == 0


def test_calls_records_and_attempts_are_counted(shop: Shop, page: Page) -> None:
    for note in ("", "", "broken"):
        shop.order("placed", note)
    shop.app.start()
    until(lambda: shop.statuses() == ["packed", "packed", "mailed"])
    until(lambda: Scraped(page).value("groundstate_attempts", reaction="packed", state="failed") == 1)
    scraped = Scraped(page)
    assert scraped.value("groundstate_calls_begun_total", service="bank", kind="call") == 3
    assert scraped.value("groundstate_calls_ended_total", service="bank", kind="call", ending="outcome") == 3
    assert scraped.value("groundstate_calls_ended_total", service="mail", ending="outcome") == 3
    assert scraped.value("groundstate_calls_in_the_air", service="bank") == 0
    assert scraped.value("groundstate_records_total", reaction="packed", ending="done") == 2
    assert scraped.value("groundstate_records_total", reaction="packed", ending="failed") >= 1
    assert scraped.value("groundstate_attempts_oldest_seconds", reaction="packed", state="failed") >= 0
    assert scraped.value("groundstate_worker_up") == 1
    assert scraped.value("groundstate_worker_incarnations_total") == 1
    until(lambda: Scraped(page).value("groundstate_sweeps_total") >= 2)
    assert Scraped(page).value("groundstate_sweeps_seconds_total") > 0


def test_an_endpoint_that_fails_shows_by_its_breaker_and_its_doubts(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_queries, "FRESH_S", 0.0)
    page = Page(sqlite_shop.app)
    sqlite_shop.bank = "break"
    for _ in range(6):
        sqlite_shop.order()
    sqlite_shop.app.start()
    until(lambda: Scraped(page).value("groundstate_breaker_open", service="bank") == 1)
    until(lambda: Scraped(page).value("groundstate_attempts", reaction="paid", state="doubt") >= 5)
    assert Scraped(page).value("groundstate_calls_ended_total", service="bank", kind="call", ending="in_doubt") >= 5
    page.close()


def test_a_reaction_that_waits_to_be_accepted_is_told_of(sqlite_shop: Shop) -> None:
    sqlite_shop.sql("DELETE FROM groundstate_reaction WHERE name = 'packed'")
    sqlite_shop.order("mailed")
    sqlite_shop.app.start()
    page = Page(sqlite_shop.app)
    until(lambda: Scraped(page).has("groundstate_reaction_refused", reaction="packed"))
    page.close()


def test_scrapes_within_some_seconds_ask_the_database_once(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_queries, "FRESH_S", 3600.0)  # it is 5 s
    page = Page(sqlite_shop.app)
    assert Scraped(page).value("groundstate_pending_rows", reaction="paid") == 0
    sqlite_shop.order()
    for _ in range(20):
        assert Scraped(page).value("groundstate_pending_rows", reaction="paid") == 0
    page.close()


def test_a_database_that_does_not_answer_costs_a_scrape_a_bounded_wait(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_queries, "FRESH_S", 0.0)
    monkeypatch.setattr(cached_queries, "WAIT_S", 0.1)
    monkeypatch.setattr(cached_queries, "STALE_S", 0.0)
    page = Page(sqlite_shop.app)
    until(lambda: Scraped(page).value("groundstate_store_answers") == 1)
    sqlite_shop.sql("ALTER TABLE groundstate_attempt RENAME TO gone")
    until(lambda: Scraped(page).value("groundstate_store_answers") == 0)
    scraped = Scraped(page)
    assert not scraped.has("groundstate_pending_rows")
    sqlite_shop.sql("ALTER TABLE gone RENAME TO groundstate_attempt")
    until(lambda: Scraped(page).value("groundstate_store_answers") == 1)
    page.close()


def test_a_database_whose_worker_never_came_up_is_told_as_not_up(tmp_path: Path) -> None:
    class Base(DeclarativeBase): ...

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        read: Mapped[bool] = mapped_column(default=False)

    url = f"sqlite:///{tmp_path / 'up.db'}"
    App("notes", Store(url, Base)).init(tables=True)
    app = App("notes-of-two", Store.shards({"up": url, "down": unused_url()}, Base))

    @app.on(Note, Note.read.is_(False))
    def read(note: Note) -> None:
        note.read = True

    app.start()
    page = Page(app)
    try:
        up = [Scraped(page).value("groundstate_worker_up", store=part.label) for part in databases_of(app)]
        assert up == [1, 0]
    finally:
        page.close()
        app.stop()


def test_a_collector_can_stand_in_anybodys_registry(sqlite_shop: Shop) -> None:
    registry = CollectorRegistry()
    collector = Collector(sqlite_shop.app)
    registry.register(collector)
    assert b"groundstate_pending_rows" in generate_latest(registry)
    collector.close()


def test_a_database_is_named_without_its_user_and_its_secrets_and_apart_from_others() -> None:
    url = make_url("postgresql+psycopg://me:secret@/shop?host=a&host=b&options=-csearch_path%3Dtwo&password=other&sslkey=file")
    named = label_of_url(url)
    assert named.startswith("postgresql:///shop?")
    assert {"host=a", "host=b", "options=-csearch_path%3Dtwo"} == set(named.partition("?")[2].split("&"))
    assert label_of_url(make_url("postgresql://me:secret@db:5433/shop")) == "postgresql://db:5433/shop"


def test_a_transport_that_is_up_is_told_of_by_its_name(postgres_url: str) -> None:
    shop = made(postgres_url)
    page = Page(shop.app)
    shop.app.start()
    (name,) = shop.app.transports
    until(lambda: Scraped(page).value("groundstate_transport_up", transport=name) == 1)
    page.close()
    ended(shop)


def test_a_stopped_app_goes_on_telling_what_the_database_says(sqlite_shop: Shop) -> None:
    page = Page(sqlite_shop.app)
    sqlite_shop.app.start()
    assert Scraped(page).value("groundstate_worker_up") == 1
    sqlite_shop.app.stop(timedelta(seconds=1))
    assert "groundstate_worker_up" not in Scraped(page).families
    assert Scraped(page).has("groundstate_pending_rows")
    page.close()


def test_each_metric_is_told_of_in_the_docs_and_the_docs_tell_of_no_other() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    told = set(re.findall(r"(?m)^\| `(groundstate_\w+)`", text))
    real = {f"{one.name}_total" if one.kind == "counter" else one.name for one in MEASURES}
    assert told == real
    alerted = set(re.findall(r"\bgroundstate_\w+", text))
    assert alerted <= real
