"""Exports an app's metrics to Prometheus: `Collector` is for a registry of the user's own, `Page` for `groundstate run --http`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as Registered

from groundstate.app.app import App
from groundstate.telemetry.metrics import MEASURES, Meter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Collector(Registered):
    """Reads the metrics of one app at each scrape. It is registered by `prometheus_client.REGISTRY.register(Collector(app))`."""

    def __init__(self, app: App) -> None:
        self._meter = Meter(app)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their values; prometheus_client calls this for each scrape."""
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
        """Return an empty list, so that registering the collector queries no database."""
        return []

    def close(self) -> None:
        """Close the connections to the databases."""
        self._meter.close()


class Page:
    """The page /metrics of `groundstate run --http`. It has the metrics of the app, and none about the Python process."""

    def __init__(self, app: App) -> None:
        self._collector = Collector(app)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Close the connections to the databases."""
        self._collector.close()
