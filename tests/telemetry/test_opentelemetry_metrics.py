"""The same metrics as OpenTelemetry's instruments, by its own SDK."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from groundstate.telemetry.metrics import MEASURES
from groundstate.telemetry.opentelemetry_metrics import measure
from tests.patience import until
from tests.telemetry.conftest import Shop


def read(reader: InMemoryMetricReader) -> dict[str, Any]:
    found: Any = reader.get_metrics_data()
    return {one.name: one for resource in found.resource_metrics for scope in resource.scope_metrics for one in scope.metrics}


def test_each_metric_is_an_instrument_with_the_same_values(sqlite_shop: Shop) -> None:
    reader = InMemoryMetricReader()
    close = measure(sqlite_shop.app, MeterProvider([reader]))
    sqlite_shop.order()
    sqlite_shop.app.start()
    until(lambda: sqlite_shop.statuses() == ["packed"])
    found = read(reader)
    (calls,) = [one for one in found["groundstate.calls_ended"].data.data_points if one.attributes["service"] == "bank"]
    assert calls.value == 1
    assert dict(calls.attributes)["ending"] == "outcome"
    assert found["groundstate.calls_ended"].data.is_monotonic
    assert found["groundstate.pending_oldest_seconds"].unit == "s"
    waiting = {one.attributes["reaction"]: one.value for one in found["groundstate.pending_rows"].data.data_points}
    assert waiting.keys() == {"paid", "mailed", "packed", "archived"}
    assert found.keys() <= {one.name.replace("_", ".", 1) for one in MEASURES}
    close()
