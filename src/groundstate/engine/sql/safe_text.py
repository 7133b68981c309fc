"""Makes text of a user's objects and exceptions, even if that raises, and turns whatever a user's code raises into an Exception.

An exception's `__str__`, an outcome's `__repr__` and a store's `redact` may raise themselves, even exceptions that would end a thread. All
our messages about such objects get their text here, so that a failure is recorded as a failure.
"""

from __future__ import annotations

import re
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BACKGROUND = re.compile(r"\s*\(Background on this error at: https://sqlalche\.me/[^)\s]*\)")  # the end of each error message of SQLAlchemy
_OF_EXCEPTIONS = ("__traceback__", "__context__", "__cause__", "__suppress_context__")
OURS = str(Path(__file__).parents[2])  # the folder of the whole package
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


class Raised(Exception):
    """Wraps a BaseException that a user's code raised, so that no thread of ours ends by it.

    Such exceptions are the SystemExit of a library, or one whose class cannot be read, as of a proxy.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(describe(error))
        self.error = error


@contextmanager
def user_code() -> Iterator[None]:
    """Wrap a call of the user's code: whatever it raises comes out as an Exception. Raises Raised."""
    try:
        yield
    except BaseException as error:
        if has_a_class(error):
            if isinstance(error, Exception):
                raise
            let_through(error)
        raise Raised(error) from error


def has_a_class(error: BaseException) -> bool:
    """Whether `error.__class__` can be read, as each `isinstance` reads it: that of a proxy may raise another exception."""
    try:
        error.__class__  # noqa: B018  # `__class__` may be a property
    except BaseException:
        return False
    return True


def meant(error: BaseException) -> BaseException:
    """Return the exception that the user's code raised: what `Raised` wraps, or what cannot be written to on its way.

    An exception that is a frozen dataclass refuses the `__traceback__` that contextlib gives it, by an error of its own.
    """
    if type(error) is Raised:
        error = error.error
    met = error.__context__
    if met is not None and type(error).__name__ == "FrozenInstanceError" and _tells_of_an_exception(error):
        return met
    return error


def _tells_of_an_exception(error: BaseException) -> bool:
    words = text_of(error)
    return any(name in words for name in _OF_EXCEPTIONS) or words == "can't set attribute"  # which is all that attrs says


def describe(error: BaseException) -> str:
    """Return an exception in one line: its type and its message."""
    error = meant(error)
    words = text_of(error).strip()
    name = type(error).__name__
    return f"{name}: {words}" if words else name


def place_of(error: BaseException) -> str:
    """Return where the user's code raised the exception, such as ' (shop/pay.py:17, in charge)'; empty where that is unknown.

    It is the innermost line that is in no library or, if there is none, the outermost line that is not in groundstate.
    """
    error = meant(error)
    lines = [(frame.f_code, number) for frame, number in traceback.walk_tb(error.__traceback__)]
    theirs = [one for one in lines if not one[0].co_filename.startswith(("<", OURS))]
    own = [one for one in theirs if not one[0].co_filename.startswith(_LIBRARIES)]
    if not theirs:
        return ""
    code, number = own[-1] if own else theirs[0]
    return f" ({'/'.join(Path(code.co_filename).parts[-2:])}:{number}, in {code.co_name})"


def text_of(value: object) -> str:
    """Return `str` of an exception or any other object, without the link that SQLAlchemy puts after each of its messages."""
    words = _made(lambda: str(value))
    return _BACKGROUND.sub("", words) if "sqlalche.me" in words else words


def shown(value: object) -> str:
    """Return `repr` of a value, even if its `__repr__` raises."""
    return _made(lambda: repr(value))


def _made(make: Callable[[], str]) -> str:
    try:
        return str.__str__(make())  # the result may be of a subclass of str that is the user's
    except BaseException as failed:
        let_through(failed)
        return f"(no words can be made of it: {type(failed).__name__})"


def let_through(error: BaseException) -> None:
    """Raise a KeyboardInterrupt of the main thread again: a person pressed Ctrl-C, and the user's code did not fail."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error
