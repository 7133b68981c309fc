"""What happens to a lock or a connection in a forked child: it is forsaken there, without a word to the other end.

A child inherits file locks and sockets. Kept open, they would make a dead worker count as living while the child lives; closed with a
goodbye, they would end the parent's. Nothing here runs in the parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from groundstate.values.errors import Stopped


class Inherited(Protocol):
    """What a forked child must not go on using."""

    def forsake(self) -> None:
        """Runs in the child, first thing after the fork: closes what was inherited without unlocking or saying goodbye."""


_known: weakref.WeakSet[Inherited] = weakref.WeakSet()


def forsake_in_child(thing: Inherited) -> None:
    """From now on `thing.forsake()` is called in each forked child, as long as `thing` lives."""
    _known.add(thing)


def hang_up(descriptor: int) -> None:
    """Makes the descriptor lead nowhere: the inherited socket is closed, and what a library still writes to it is lost."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


def refuse_child(pid: int) -> None:
    """Raises Stopped where this process is not `pid`, the one that made what is being used."""
    if pid != os.getpid():
        message = (
            f"this store belongs to process {pid}, and process {os.getpid()} was forked from it: start the app in the child, after the fork"
            " (gunicorn: in post_fork; multiprocessing: use the 'spawn' start method)"
        )
        raise Stopped(message)


def _forsake_all() -> None:
    for thing in list(_known):
        thing.forsake()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forsake_all)
