"""Exports an app's metrics to OpenTelemetry, as observable instruments of a meter provider."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from groundstate.app.app import App
from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.telemetry.metrics import MEASURES, Measure, Meter, Values

TOGETHER_S = 1.0  # seconds within which all instruments use the values of one reading


def measure(app: App, provider: MeterProvider | None = None) -> Callable[[], None]:
    """Export the app's metrics to OpenTelemetry. Return a function that closes the connections to the databases.

    provider: the meter provider; the process's own if left out.
    """
    reading = _SharedReading(Meter(app))
    meter = metrics.get_meter("groundstate", meter_provider=provider)
    for one in MEASURES:
        make = meter.create_observable_counter if one.kind == "counter" else meter.create_observable_gauge
        make(one.name.replace("_", ".", 1), callbacks=[partial(reading.observe, one)], unit=one.unit, description=one.words)
    return reading.meter.close


class _SharedReading:
    """Reads the values of all metrics once for each export, although OpenTelemetry asks for each metric separately."""

    def __init__(self, meter: Meter, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self.meter = meter
        self._lock = threading.Lock()
        self._values: Values = {}
        self._at = 0.0

    def observe(self, one: Measure, _options: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            if not self._values or self._clock.monotonic() - self._at > TOGETHER_S:
                self._values, self._at = self.meter.values(), self._clock.monotonic()
            return [Observation(value.value, dict(zip(one.labels, value.labels, strict=True))) for value in self._values[one]]
