"""Creates the event loop in which async calls run. It is asyncio's own loop, but a function that the loop runs in a thread has the context
(contextvars) of the call that asked for the thread.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any


def new_call_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose `run_in_executor` runs the function in the context of its caller, as `asyncio.to_thread` does.

    So `inside_call` can tell that a thread works for a call. A function for a pool of processes runs without its caller's context, which
    cannot be sent to a process.
    """
    loop = asyncio.new_event_loop()
    run = loop.run_in_executor

    def run_in_executor(executor: Executor | None, function: Callable[..., Any], *args: Any) -> Any:
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            return run(executor, contextvars.copy_context().run, function, *args)
        return run(executor, function, *args)

    vars(loop)["run_in_executor"] = run_in_executor
    return loop
