"""Traces by OpenTelemetry: a span for each call and find, and for each transaction of handlers. No record's data, and no key unless asked.

A span begins a trace of its own, and links to none: what wrote the row wrote no trace context into it, and nowhere else would that be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry import context
from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from groundstate.app.app import App
from groundstate.engine import tally
from groundstate.engine.flight import Flight, NothingHappened, Unclear, Word
from groundstate.engine.watching import Committed, Ran, Where
from groundstate.rules.reaction import ReactionSpec


def trace(app: App, provider: TracerProvider | None = None, *, keys: bool = False) -> None:
    """Gives spans of the app's work to OpenTelemetry from its next start on: to this provider, else to the process's.

    keys: with the record's primary key and its idempotency key. Both may say who somebody is.
    """
    app.observe(Traces(api.get_tracer("groundstate", tracer_provider=provider), keys=keys))


class Traces:
    """A `Watch` of the engine. A span is the current one while what it tells of is done, so that a user's own spans hang below it."""

    def __init__(self, tracer: Tracer, *, keys: bool = False) -> None:
        self._tracer = tracer
        self._keys = keys

    def calls(self, where: Where, flights: Sequence[Flight]) -> Callable[[Sequence[Word]], None]:
        """One call or find, or one `call_many` of several records."""
        first = flights[0]
        spec = first.question.spec
        outside, reaction, kind = tally.call_of(first)
        name = spec.call.function.name if spec.call else reaction
        attributes: dict[str, str | int] = {
            **_of(where), "groundstate.reaction": reaction, "groundstate.outside": outside, "groundstate.records": len(flights),
        }  # fmt: skip
        if len(flights) == 1:
            attributes["groundstate.call_no"] = first.moment.call_no
            if self._keys:
                attributes |= {"groundstate.record": first.identity[2], "groundstate.key": str(first.key)}
        span, left = self._begin(f"groundstate.{kind} {name}", SpanKind.CLIENT, attributes)

        def ended(words: Sequence[Word]) -> None:
            endings = sorted({tally.ending_of(word) for word in words})
            span.set_attribute("groundstate.ending", ",".join(endings))
            if any(isinstance(word, Unclear | NothingHappened) for word in words):
                span.set_status(Status(StatusCode.ERROR, ",".join(endings)))  # and not its words, which may have data in them
            left()

        return ended

    def batch(self, where: Where, spec: ReactionSpec) -> Callable[[Ran], None]:
        """Handlers of a reaction without a call."""
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

    def transaction(self, where: Where, words: Sequence[Word]) -> Callable[[Committed], None]:
        """What came back of calls is handled, and new ones are begun."""
        span, left = self._begin("groundstate.transaction", SpanKind.INTERNAL, {**_of(where), "groundstate.in_hand": len(words)})

        def ended(came: Committed) -> None:
            span.set_attribute("groundstate.concluded", came.concluded)
            span.set_attribute("groundstate.begun", came.begun)
            left()

        return ended

    def _begin(self, name: str, kind: SpanKind, attributes: dict[str, str | int]) -> tuple[Span, Callable[[], None]]:
        # A context of its own, and not the current one: a thread that is used again must not hang one call below another.
        span = self._tracer.start_span(name, Context(), kind, attributes)
        token = context.attach(api.set_span_in_context(span, Context()))

        def left() -> None:
            context.detach(token)
            span.end()

        return span, left


def _of(where: Where) -> dict[str, str | int]:
    return {"groundstate.app": where.app, "groundstate.store": where.store}
