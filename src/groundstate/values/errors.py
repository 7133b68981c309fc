"""Defines every error that a user can meet; its message names the cure. Nothing here decides or logs.

GroundstateError
├── DeclarationError           a reaction, call or store is declared so that it would lose or double something
├── StoreRefusedError          the database cannot keep our promise (locks that do not exclude, no durability, ...)
│   └── LifeTakenError         another session has the lock of this worker incarnation
├── TransportRefusedError      the transport of hints keeps them, or does not show whether it does
├── TransportDownError         the transport of hints cannot be reached now
├── NotInitialisedError        our four tables are missing, or are not of this version
├── ConflictError              what a person asked of an attempt is not possible now
├── NotFoundError              there is no such record, attempt or reaction
├── StateRefusedError          a session tried what would break a promise (a write from a call, a delete under an attempt)
└── StoppedError               the worker is not running
"""

from __future__ import annotations


class GroundstateError(Exception):
    """GroundstateError is the base class of all errors of groundstate."""


class DeclarationError(GroundstateError):
    """This is raised where a declaration would lose or double something, or never run; the message names the cure."""


class DeclarationWarning(UserWarning):
    """This is issued where a declaration is legal and probably not what was meant; the message names the cure."""


class StoreRefusedError(GroundstateError):
    """This is raised where this database, as it is set up, cannot keep the promises; the message names what was found and the cure."""


class LifeTakenError(StoreRefusedError):
    """This is raised where another session has the lock of this worker incarnation: one of another process, which adopts its attempts, or
    one of our own that has not ended yet.
    """


class TransportRefusedError(GroundstateError):
    """This is raised where a transport keeps hints, or does not show whether it does; the message names what was found and the cure."""


class TransportDownError(GroundstateError):
    """This is raised where a transport cannot be reached now. Until it can, hints are lost, and the sweep finds everything."""


class NotInitialisedError(GroundstateError):
    """This is raised where our tables are missing in the database, or lack columns of this version: run `groundstate init`."""


class ConflictError(GroundstateError):
    """This is raised where an action on an attempt is not possible in its present state; the message says why, and what is possible."""


class NotFoundError(GroundstateError):
    """This is raised where there is no such record, attempt or reaction."""


class StateRefusedError(GroundstateError):
    """This is raised for a write that would break a promise; the write is refused before it reaches the database."""


class StoppedError(GroundstateError):
    """This is raised where the app is not running in this process; start it with `app.start()`, `app.running()` or `groundstate run`."""


class WentBackError(GroundstateError):
    """This is raised where the database knows less than this worker incarnation remembers: a backup was put back, or a failover lost
    commits (hazard 46).
    """
