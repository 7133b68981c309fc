"""Exports traces to OpenTelemetry: a span for each call and lookup, and for each transaction of handlers.

A span contains no data of a record, except its primary key and idempotency key if `keys=True` is given. Each span begins a new trace. The
span has no link to the trace of the code that wrote the row, since the row holds no trace context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry import context
from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from groundstate.app.app import App
from groundstate.engine.rows.in_flight import CallResult, InFlightCall, NothingHappened, Unclear
from groundstate.engine.watch import counters
from groundstate.engine.watch.trace_hooks import Committed, Ran, Where
from groundstate.rules.specs import ReactionSpec


def trace(app: App, provider: TracerProvider | None = None, *, keys: bool = False) -> None:
    """Export spans of the app's work to OpenTelemetry, from the app's next start on.

    provider: the tracer provider; the process's own if left out. keys: whether spans contain primary keys and idempotency keys, both of
    which may identify a person.
    """
    app.set_watch(Traces(api.get_tracer("groundstate", tracer_provider=provider), keys=keys))


class Traces:
    """A `Watch` that makes spans. While a call or handler runs, its span is the current span. Spans that the user's code makes meanwhile
    become children of that span.
    """

    def __init__(self, tracer: Tracer, *, keys: bool = False) -> None:
        self._tracer = tracer
        self._keys = keys

    def trace_calls(self, where: Where, in_flights: Sequence[InFlightCall]) -> Callable[[Sequence[CallResult]], None]:
        """Begin a span for one call or lookup, or for one `call_many` of several records. Return the function that ends the span."""
        first = in_flights[0]
        spec = first.query.spec
        service, reaction, kind = counters.counter_key_of(first)
        name = spec.call.function.name if spec.call else reaction
        attributes: dict[str, str | int] = {
            **_common_attributes(where),
            "groundstate.reaction": reaction,
            "groundstate.service": service,
            "groundstate.records": len(in_flights),
        }
        if len(in_flights) == 1:
            attributes["groundstate.call_no"] = first.moment.call_no
            if self._keys:
                attributes |= {"groundstate.record": first.identity[2], "groundstate.key": str(first.key)}
        span, left = self._begin_span(f"groundstate.{kind} {name}", SpanKind.CLIENT, attributes)

        def end_span(results: Sequence[CallResult]) -> None:
            endings = sorted({counters.name_of_ending(result) for result in results})
            span.set_attribute("groundstate.ending", ",".join(endings))
            if any(isinstance(result, Unclear | NothingHappened) for result in results):
                span.set_status(Status(StatusCode.ERROR, ",".join(endings)))  # the error's text may contain data, so it is left out
            left()

        return end_span

    def trace_batch(self, where: Where, spec: ReactionSpec) -> Callable[[Ran], None]:
        """Begin a span for the handlers of a reaction without a call. Return the function that ends the span."""
        late = spec.due is not None and spec.due.expires
        span, left = self._begin_span(
            f"groundstate.{'expired' if late else 'batch'} {spec.name}",
            SpanKind.INTERNAL,
            {**_common_attributes(where), "groundstate.reaction": spec.name},
        )

        def end_span(ran: Ran) -> None:
            span.set_attribute("groundstate.done", ran.done)
            span.set_attribute("groundstate.failed", ran.failed)
            if ran.error is not None:
                span.set_status(Status(StatusCode.ERROR, type(ran.error).__name__))
            left()

        return end_span

    def trace_transaction(self, where: Where, results: Sequence[CallResult]) -> Callable[[Committed], None]:
        """Begin a span for a transaction that handles call results and begins new calls. Return the function that ends the span."""
        span, left = self._begin_span(
            "groundstate.transaction", SpanKind.INTERNAL, {**_common_attributes(where), "groundstate.in_hand": len(results)}
        )

        def end_span(came: Committed) -> None:
            span.set_attribute("groundstate.concluded", came.concluded)
            span.set_attribute("groundstate.begun", came.begun)
            left()

        return end_span

    def _begin_span(self, name: str, kind: SpanKind, attributes: dict[str, str | int]) -> tuple[Span, Callable[[], None]]:
        # The parent context is empty: in a thread that is reused, the current context could be that of an earlier call.
        span = self._tracer.start_span(name, Context(), kind, attributes)
        token = context.attach(api.set_span_in_context(span, Context()))

        def detach_and_end() -> None:
            context.detach(token)
            span.end()

        return span, detach_and_end


def _common_attributes(where: Where) -> dict[str, str | int]:
    return {"groundstate.app": where.app, "groundstate.store": where.store}
