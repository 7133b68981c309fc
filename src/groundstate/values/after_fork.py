"""Abandons locks and connections in a forked child, without a message to the other end.

A child inherits file locks and sockets. Kept open, they would make a dead worker count as running while the child runs; closed with a
goodbye, they would end the parent's. Nothing here runs in the parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from groundstate.values.errors import StoppedError


class Inherited(Protocol):
    """An Inherited object is one that a forked child must not go on using."""

    def forsake(self) -> None:
        """Close what the child inherited without unlocking or saying goodbye; this is called in the child, first thing after the fork."""


_known: weakref.WeakSet[Inherited] = weakref.WeakSet()


def forsake_in_child(thing: Inherited) -> None:
    """Call `thing.forsake()` in each child that is forked from now on, as long as `thing` exists."""
    _known.add(thing)


def hang_up(descriptor: int) -> None:
    """Make the descriptor lead nowhere: the inherited socket is closed, and what a library still writes to it is lost."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


def refuse_child(pid: int) -> None:
    """Raise StoppedError where this process is not `pid`, which created the object that is being used."""
    if pid != os.getpid():
        message = (
            f"this store belongs to process {pid}, and process {os.getpid()} was forked from it: start the app in the child, after the fork"
            " (gunicorn: in post_fork; multiprocessing: use the 'spawn' start method)"
        )
        raise StoppedError(message)


def _forsake_all() -> None:
    for thing in list(_known):
        thing.forsake()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forsake_all)
