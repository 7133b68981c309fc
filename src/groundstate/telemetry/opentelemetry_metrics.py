"""Exports an app's metrics as OpenTelemetry's observable instruments, to whatever meter provider the process set up. It counts nothing
itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from groundstate.app.app import App
from groundstate.telemetry.metrics import MEASURES, Measure, Meter, Values

TOGETHER_S = 1.0  # seconds: instruments that are read within this span share one reading


def measure(app: App, provider: MeterProvider | None = None) -> Callable[[], None]:
    """Export the app's metrics to OpenTelemetry: to this provider, else to the process's. Return a function that closes the connections."""
    reading = _Reading(Meter(app))
    meter = metrics.get_meter("groundstate", meter_provider=provider)
    for one in MEASURES:
        make = meter.create_observable_counter if one.kind == "counter" else meter.create_observable_gauge
        make(one.name.replace("_", ".", 1), callbacks=[partial(reading.of, one)], unit=one.unit, description=one.words)
    return reading.meter.close


class _Reading:
    """A _Reading holds the values of all instruments, which are read once for one export."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._lock = threading.Lock()
        self._values: Values = {}
        self._at = 0.0

    def of(self, one: Measure, _options: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            if not self._values or time.monotonic() - self._at > TOGETHER_S:
                self._values, self._at = self.meter.values(), time.monotonic()
            return [Observation(value.value, dict(zip(one.labels, value.labels, strict=True))) for value in self._values[one]]
