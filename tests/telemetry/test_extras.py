"""Prometheus's and OpenTelemetry's libraries are imported where they are asked for, and are told of where they are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from groundstate.cli import run
from groundstate.cli.common import CommandFailed
from groundstate.cli.health import Health
from groundstate.cli.http_endpoint import Endpoint
from tests.telemetry.conftest import Shop

GUESTS = ("prometheus_client", "opentelemetry")


def without(monkeypatch: pytest.MonkeyPatch, guest: str) -> None:
    """As where it was not installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] == guest or name.startswith("groundstate.telemetry."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, guest, None)


def test_nothing_of_them_is_imported_where_nobody_asks() -> None:
    program = (
        f"import sys, groundstate, groundstate.cli.run, groundstate.cli.status; print([one for one in {GUESTS!r} if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_otel_without_its_extra_is_refused_with_the_cure(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "opentelemetry")
    with pytest.raises(CommandFailed, match=r"groundstate\[otel\]"):
        run._export_to_opentelemetry(sqlite_shop.app)


def test_otel_with_its_extra_and_no_provider_changes_nothing(sqlite_shop: Shop) -> None:
    run._export_to_opentelemetry(sqlite_shop.app)
    sqlite_shop.order()
    sqlite_shop.app.start()
    assert sqlite_shop.app.run_until_idle() is not None
    assert sqlite_shop.statuses() == ["packed"]


def test_metrics_without_their_extra_are_told_of_with_the_cure(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "prometheus_client")
    endpoint = Endpoint(sqlite_shop.app, Health(sqlite_shop.app), "127.0.0.1:0", 1.0)
    status, _, body = endpoint.respond_to("/metrics")
    endpoint.close()
    assert (int(status), body) == (501, b"install groundstate[metrics] for this page\n")


def test_no_metric_and_no_probe_makes_a_database(tmp_path: Path, sqlite_shop: Shop) -> None:
    sqlite_shop.engine.dispose()
    (tmp_path / "test.db").unlink()
    endpoint = Endpoint(sqlite_shop.app, Health(sqlite_shop.app), "127.0.0.1:0", 1.0)
    assert b"groundstate_store_answers{" in endpoint.respond_to("/metrics")[2]
    assert endpoint.respond_to("/readyz")[0] == 503
    endpoint.close()
    assert not (tmp_path / "test.db").exists()
