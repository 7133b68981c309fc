"""Spans of calls, finds and transactions, by OpenTelemetry's own SDK."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace as api
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from groundstate.engine.rows.in_flight import CallResult, InFlightCall
from groundstate.engine.watch.trace_hooks import Where
from groundstate.telemetry.traces import trace
from tests.patience import until
from tests.telemetry.conftest import Shop


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        return [one for one in self.exporter.get_finished_spans() if one.name == name]

    def text(self) -> str:
        return json.dumps([json.loads(one.to_json()) for one in self.exporter.get_finished_spans()])


def of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


CHARGE = "groundstate.call made.<locals>.charge"
SEND = "groundstate.call made.<locals>.send"


def test_a_call_is_a_span_and_what_it_calls_hangs_below_it(sqlite_shop: Shop) -> None:
    spans = Spans()
    inner = spans.provider.get_tracer("the user's HTTP client")

    def request() -> None:
        with inner.start_as_current_span("POST /charges"):
            pass

    sqlite_shop.inside = request
    trace(sqlite_shop.app, spans.provider)
    sqlite_shop.order()
    sqlite_shop.app.start()
    until(lambda: sqlite_shop.statuses() == ["packed"])
    until(lambda: spans.named("groundstate.batch packed"))
    (charge,), (send,) = spans.named(CHARGE), spans.named(SEND)
    first, second = spans.named("POST /charges")
    for child, parent in ((first, charge), (second, send)):  # one on the loop, one in a thread
        above: Any = parent.get_span_context()
        assert child.parent is not None
        assert child.parent.span_id == above.span_id
        assert parent.parent is None
        assert not parent.links
    assert charge.kind is SpanKind.CLIENT
    told = of(charge)
    assert told.pop("groundstate.store").startswith("sqlite:///")
    assert told == {
        "groundstate.app": sqlite_shop.app.name, "groundstate.reaction": "paid", "groundstate.service": "bank", "groundstate.records": 1,
        "groundstate.call_no": 1, "groundstate.ending": "outcome",
    }  # fmt: skip


def test_handlers_run_within_the_span_of_their_transaction(sqlite_shop: Shop) -> None:
    spans = Spans()
    names: list[str] = []
    sqlite_shop.in_handler = lambda: names.append(getattr(api.get_current_span(), "name", "none"))
    trace(sqlite_shop.app, spans.provider)
    sqlite_shop.order()
    sqlite_shop.app.start()
    until(lambda: sqlite_shop.statuses() == ["packed"])
    assert names == ["groundstate.transaction", "groundstate.batch packed"]
    until(lambda: any(of(one)["groundstate.done"] == 1 for one in spans.named("groundstate.batch packed")))
    assert sum(of(one)["groundstate.concluded"] for one in spans.named("groundstate.transaction")) == 2
    assert sum(of(one)["groundstate.begun"] for one in spans.named("groundstate.transaction")) == 2


def test_a_call_in_doubt_is_an_error_without_its_words(sqlite_shop: Shop) -> None:
    spans = Spans()
    trace(sqlite_shop.app, spans.provider)
    sqlite_shop.bank = "break"
    sqlite_shop.order(note="broken")
    sqlite_shop.app.start()
    until(lambda: spans.named(CHARGE))
    (charge,) = spans.named(CHARGE)
    assert charge.status.status_code is StatusCode.ERROR
    assert of(charge)["groundstate.ending"] == "in_doubt"
    assert "4111" not in spans.text()


def test_a_find_is_a_span_of_its_own(sqlite_shop: Shop) -> None:
    spans = Spans()
    trace(sqlite_shop.app, spans.provider)
    sqlite_shop.bank = "break"
    sqlite_shop.order()
    sqlite_shop.app.start()
    until(lambda: spans.named("groundstate.lookup made.<locals>.charge"))
    assert of(spans.named("groundstate.lookup made.<locals>.charge")[0])["groundstate.ending"] == "unknown"


@pytest.mark.parametrize("keys", [False, True])
def test_keys_are_told_only_where_that_was_asked_for(sqlite_shop: Shop, keys: bool) -> None:
    spans = Spans()
    trace(sqlite_shop.app, spans.provider, keys=keys)
    sqlite_shop.order()
    sqlite_shop.app.start()
    until(lambda: spans.named(CHARGE))
    assert ("groundstate.key" in of(spans.named(CHARGE)[0])) is keys
    assert ("groundstate.record" in of(spans.named(CHARGE)[0])) is keys


class Broken:
    """A watch that raises at each thing that it is told."""

    def __init__(self, *, late: bool) -> None:
        self.late = late
        self.told = 0

    def _tell(self) -> Any:
        self.told += 1
        if not self.late:
            raise RuntimeError("the exporter is down")
        return self._end

    def _end(self, _what: object) -> None:
        raise RuntimeError("the exporter is down")

    def trace_calls(self, where: Where, flights: Sequence[InFlightCall]) -> Any:  # noqa: ARG002  # what a watch is given
        return self._tell()

    def trace_batch(self, where: Where, spec: object) -> Any:  # noqa: ARG002  # what a watch is given
        return self._tell()

    def trace_transaction(self, where: Where, words: Sequence[CallResult]) -> Any:  # noqa: ARG002  # what a watch is given
        return self._tell()


@pytest.mark.parametrize("late", [False, True])
def test_a_watch_that_raises_keeps_nothing_from_being_done(sqlite_shop: Shop, late: bool) -> None:
    broken = Broken(late=late)
    sqlite_shop.app.set_watch(broken)
    sqlite_shop.order()
    sqlite_shop.app.start()
    until(lambda: sqlite_shop.statuses() == ["packed"])
    assert broken.told >= 4
