"""The event loop of async calls: asyncio's own, but for threads, which take the context of who starts them along."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any


def new_call_loop() -> asyncio.AbstractEventLoop:
    """A loop whose `run_in_executor` runs a thread's work in the context of its caller, as `asyncio.to_thread` does.

    So what a call hands to a thread is known to be the call's (`inside_call`). Not of a pool of processes: a context cannot go there.
    """
    loop = asyncio.new_event_loop()
    run = loop.run_in_executor

    def run_in_executor(executor: Executor | None, function: Callable[..., Any], *args: Any) -> Any:
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            return run(executor, contextvars.copy_context().run, function, *args)
        return run(executor, function, *args)

    vars(loop)["run_in_executor"] = run_in_executor
    return loop
