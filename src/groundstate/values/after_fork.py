"""Closes inherited locks and connections in a forked child, without unlocking and without a closing message to the server.

A child inherits the file locks and sockets of its parent. If the child kept them open, and the parent died, the parent would still count
as a running worker until the child ends. If the child unlocked a file or sent a closing message, the parent would lose its lock or
connection.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from groundstate.values.errors import StoppedError


class InheritedByFork(Protocol):
    """An object with a lock or a connection that a forked child inherits and must not use."""

    def abandon_after_fork(self) -> None:
        """Close the inherited lock or connection without unlocking it and without a message to the server.

        This is called in the child, right after the fork.
        """


_registered: weakref.WeakSet[InheritedByFork] = weakref.WeakSet()


def abandon_in_child(thing: InheritedByFork) -> None:
    """Call `thing.abandon_after_fork()` in each child that is forked from now on, as long as `thing` exists."""
    _registered.add(thing)


def redirect_to_devnull(descriptor: int) -> None:
    """Point the descriptor to os.devnull: this closes the inherited socket, and discards what a library may still write to it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


def refuse_use_in_child(pid: int) -> None:
    """Raise StoppedError if this process is not the process `pid`, which created the object that is being used."""
    if pid != os.getpid():
        message = (
            f"this store belongs to process {pid}, and process {os.getpid()} was forked from it: start the app in the child, after the fork"
            " (gunicorn: in post_fork; multiprocessing: use the 'spawn' start method)"
        )
        raise StoppedError(message)


def _abandon_all_in_child() -> None:
    for thing in list(_registered):
        thing.abandon_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all_in_child)
