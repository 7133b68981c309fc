"""Makes the event loop of async calls: asyncio's own, but its threads run in the context of the call that started them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any


def new_call_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose `run_in_executor` runs a thread's work in its caller's context, as `asyncio.to_thread` does.

    So work that a call hands to a thread is known to be the call's (`inside_call`). A pool of processes is left as it is, since a context
    cannot be sent there.
    """
    loop = asyncio.new_event_loop()
    run = loop.run_in_executor

    def run_in_executor(executor: Executor | None, function: Callable[..., Any], *args: Any) -> Any:
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            return run(executor, contextvars.copy_context().run, function, *args)
        return run(executor, function, *args)

    vars(loop)["run_in_executor"] = run_in_executor
    return loop
