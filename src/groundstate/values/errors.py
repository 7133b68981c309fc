"""Every error that a user can get. The message of an error names the cure.

GroundstateError
├── DeclarationError           a reaction, call or store is declared so that an effect would be lost or repeated
├── StoreRefusedError          the database cannot keep groundstate's promises (its locks exclude nobody, its commits are not durable, ...)
│   └── LifeTakenError         another session has the lock of this worker incarnation
├── TransportRefusedError      the transport of hints persists them, or does not show whether it does
├── TransportDownError         the transport of hints cannot be reached now
├── NotInitialisedError        groundstate's four tables are missing, or are not of this version
├── ConflictError              an action on an attempt, such as a retry, is not possible now
├── NotFoundError              there is no such record, attempt or reaction
├── StateRefusedError          a write would break a promise (a call that writes to the database, a delete of a row with an open attempt)
├── StoppedError               the app is not running
└── WentBackError              the database lacks commits that this worker saw
"""

from __future__ import annotations


class GroundstateError(Exception):
    """The base class of all errors of groundstate."""


class DeclarationError(GroundstateError):
    """With this declaration, an effect would be lost or repeated, or a function would never run; the message names the cure."""


class DeclarationWarning(UserWarning):
    """A declaration is legal, but probably not what its author meant; the message names the cure."""


class StoreRefusedError(GroundstateError):
    """This database, as it is set up, cannot keep groundstate's promises; the message names what was found and the cure."""


class LifeTakenError(StoreRefusedError):
    """Another session holds the lock of this worker incarnation.

    It is a session of a process that adopts the incarnation's attempts, or an earlier session of this process that the server has not ended
    yet.
    """


class TransportRefusedError(GroundstateError):
    """The transport persists hints, or does not show whether it does; the message names what was found and the cure."""


class TransportDownError(GroundstateError):
    """The transport cannot be reached now. Until it can be, hints are lost, and work is found by the sweep."""


class NotInitialisedError(GroundstateError):
    """groundstate's tables are missing in the database, or lack columns of this version: run `groundstate init`."""


class ConflictError(GroundstateError):
    """An action on an attempt is not possible in its present state; the message says why, and what is possible."""


class NotFoundError(GroundstateError):
    """There is no such record, attempt or reaction."""


class StateRefusedError(GroundstateError):
    """A write would break one of groundstate's promises; the write is refused before it reaches the database."""


class StoppedError(GroundstateError):
    """The app is not running in this process; start it with `app.start()`, `app.running()` or `groundstate run`."""


class WentBackError(GroundstateError):
    """The database lacks commits that this worker incarnation has seen: a backup was restored, or a failover lost commits (hazard 46)."""
