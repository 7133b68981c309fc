"""Metrics for Prometheus: a collector for anybody's registry, and the page of our own. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as Registered

from groundstate.app.app import App
from groundstate.telemetry.measures import MEASURES, Meter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Collector(Registered):
    """The metrics of one app, each time they are scraped: `prometheus_client.REGISTRY.register(Collector(app))`."""

    def __init__(self, app: App) -> None:
        self._meter = Meter(app)

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client calls."""
        values = self._meter.values()
        for measure in MEASURES:
            if not values[measure]:
                continue
            family: GaugeMetricFamily | CounterMetricFamily
            if measure.kind == "counter":
                family = CounterMetricFamily(measure.name, measure.words, labels=measure.labels)
            else:
                family = GaugeMetricFamily(measure.name, measure.words, labels=measure.labels)
            for one in values[measure]:
                family.add_metric(one.labels, float(one.value))
            yield family

    def describe(self) -> list[Metric]:
        """Nothing, so that registering it asks no database."""
        return []

    def close(self) -> None:
        """Closes its connections to the databases."""
        self._meter.close()


class Page:
    """The page that `groundstate run --http` serves under /metrics: of the app alone, and nothing of this Python."""

    def __init__(self, app: App) -> None:
        self._collector = Collector(app)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Closes its connections to the databases."""
        self._collector.close()
