"""Every error a user can meet, with its cure in the message. Nothing here decides or logs.

GroundstateError
├── DeclarationError      a reaction, call or store is declared so that it would lose or double something
├── StoreRefused          the database cannot keep our promise (locks that do not exclude, no durability, ...)
│   └── LifeTaken         somebody has the lock of this life
├── TransportRefused      what carries hints keeps them, or will not say whether it does
├── TransportDown         what carries hints cannot be reached just now
├── NotInitialised        our four tables are not there, or are not of this version
├── Conflict              what a person asked of an attempt is not possible now
├── NotFound              no such record, attempt or reaction
├── StateRefused          a session tried what would break a promise (a write from a call, a delete under an attempt)
└── Stopped               the worker is not running
"""

from __future__ import annotations


class GroundstateError(Exception):
    """The root of every error of ours."""


class DeclarationError(GroundstateError):
    """What was declared would lose or double something, or never run; the message names the cure."""


class DeclarationWarning(UserWarning):
    """What was declared is legal and probably not what was meant; the message names the cure."""


class StoreRefused(GroundstateError):
    """This database, as it is set up, cannot keep the promises; the message names what was found and the cure."""


class LifeTaken(StoreRefused):
    """Somebody has the lock of this life: another process, who adopts it, or a session of our own that has not ended yet."""


class TransportRefused(GroundstateError):
    """This transport keeps hints, or does not let it be seen whether it does; the message names what was found and the cure."""


class TransportDown(GroundstateError):
    """This transport cannot be reached just now. Hints are lost until it can be, and everything is found by the sweep."""


class NotInitialised(GroundstateError):
    """Our tables are missing in this database, or do not have the columns of this version: run `groundstate init`."""


class Conflict(GroundstateError):
    """What was asked of an attempt is not possible in its present state; the message says why and what is."""


class NotFound(GroundstateError):
    """No such record, attempt or reaction."""


class StateRefused(GroundstateError):
    """A write that would break a promise was refused before it reached the database."""


class Stopped(GroundstateError):
    """The app is not running in this process; start it with `app.start()`, `app.running()` or `groundstate run`."""


class WentBack(GroundstateError):
    """The database knows less than this life remembers: a backup was put back or a failover lost commits (hazard 46)."""
