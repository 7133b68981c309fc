"""Exports traces to OpenTelemetry: a span for each call and lookup, and for each transaction of handlers. A span contains no record's data,
and no key unless asked.

A span begins a trace of its own and links to none: the code that wrote the row stored no trace context in it, and it could be kept nowhere
else.
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
    """Export spans of the app's work to OpenTelemetry from its next start on: to this provider, else to the process's.

    keys: add the record's primary key and its idempotency key. Both may identify a person.
    """
    app.observe(Traces(api.get_tracer("groundstate", tracer_provider=provider), keys=keys))


class Traces:
    """Traces is a `Watch` of the engine. A span is the current one while its work is done, so that a user's own spans are its children."""

    def __init__(self, tracer: Tracer, *, keys: bool = False) -> None:
        self._tracer = tracer
        self._keys = keys

    def calls(self, where: Where, in_flights: Sequence[InFlightCall]) -> Callable[[Sequence[CallResult]], None]:
        """Begin a span for one call or lookup, or one `call_many` of several records; return the function that ends it."""
        first = in_flights[0]
        spec = first.query.spec
        service, reaction, kind = counters.call_of(first)
        name = spec.call.function.name if spec.call else reaction
        attributes: dict[str, str | int] = {
            **_of(where), "groundstate.reaction": reaction, "groundstate.service": service, "groundstate.records": len(in_flights),
        }  # fmt: skip
        if len(in_flights) == 1:
            attributes["groundstate.call_no"] = first.moment.call_no
            if self._keys:
                attributes |= {"groundstate.record": first.identity[2], "groundstate.key": str(first.key)}
        span, left = self._begin(f"groundstate.{kind} {name}", SpanKind.CLIENT, attributes)

        def ended(words: Sequence[CallResult]) -> None:
            endings = sorted({counters.ending_of(word) for word in words})
            span.set_attribute("groundstate.ending", ",".join(endings))
            if any(isinstance(word, Unclear | NothingHappened) for word in words):
                span.set_status(Status(StatusCode.ERROR, ",".join(endings)))  # the error's text may contain data, so it is left out
            left()

        return ended

    def batch(self, where: Where, spec: ReactionSpec) -> Callable[[Ran], None]:
        """Begin a span for the handlers of a reaction without a call; return the function that ends it."""
        late = spec.due is not None and spec.due.expires
        span, left = self._begin(
            f"groundstate.{'expired' if late else 'batch'} {spec.name}",
            SpanKind.INTERNAL,
            {**_of(where), "groundstate.reaction": spec.name},
        )

        def ended(ran: Ran) -> None:
            span.set_attribute("groundstate.done", ran.done)
            span.set_attribute("groundstate.failed", ran.failed)
            if ran.error is not None:
                span.set_status(Status(StatusCode.ERROR, type(ran.error).__name__))
            left()

        return ended

    def transaction(self, where: Where, words: Sequence[CallResult]) -> Callable[[Committed], None]:
        """Begin a span for a transaction that handles call results and begins new calls; return the function that ends it."""
        span, left = self._begin("groundstate.transaction", SpanKind.INTERNAL, {**_of(where), "groundstate.in_hand": len(words)})

        def ended(came: Committed) -> None:
            span.set_attribute("groundstate.concluded", came.concluded)
            span.set_attribute("groundstate.begun", came.begun)
            left()

        return ended

    def _begin(self, name: str, kind: SpanKind, attributes: dict[str, str | int]) -> tuple[Span, Callable[[], None]]:
        # An empty context instead of the current one: where a thread is used again, one call must not become the child of another.
        span = self._tracer.start_span(name, Context(), kind, attributes)
        token = context.attach(api.set_span_in_context(span, Context()))

        def left() -> None:
            context.detach(token)
            span.end()

        return span, left


def _of(where: Where) -> dict[str, str | int]:
    return {"groundstate.app": where.app, "groundstate.store": where.store}
