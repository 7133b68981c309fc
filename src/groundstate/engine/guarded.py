"""Text of what a user's code has made, whatever that code does while it is asked for it; and what it raises, whatever that is.

An exception's `__str__`, an outcome's `__repr__` and a store's `redact` may raise themselves, also what would end a thread. Everything of
ours that tells of such a thing gets its text here, so that a failure is written down as one.
"""

from __future__ import annotations

import re
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BACKGROUND = re.compile(r"\s*\(Background on this error at: https://sqlalche\.me/[^)\s]*\)")  # ends what SQLAlchemy says of each error
OURS = str(Path(__file__).parents[1])
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


class Raised(Exception):
    """What a user's code raised and is no Exception that can be asked for its class: as one, so that no thread of ours ends by it. Such are
    SystemExit of a library, and what a proxy raises.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(describe(error))
        self.error = error


@contextmanager
def user_code() -> Iterator[None]:
    """Around code of the user's: whatever it raises comes out as an Exception. Raises Raised."""
    try:
        yield
    except BaseException as error:
        if has_a_class(error):
            if isinstance(error, Exception):
                raise
            let_through(error)
        raise Raised(error) from error


def has_a_class(error: BaseException) -> bool:
    """Whether `error.__class__` can be read, as each `isinstance` reads it: that of a proxy may raise something else."""
    try:
        error.__class__  # noqa: B018  # a property
    except BaseException:
        return False
    return True


def describe(error: BaseException) -> str:
    """An exception in one line: its type and words."""
    if type(error) is Raised:
        error = error.error
    words = text_of(error).strip()
    name = type(error).__name__
    return f"{name}: {words}" if words else name


def place_of(error: BaseException) -> str:
    """Where the user's code raised it, to go on with after its words: ' (shop/pay.py:17, in charge)'; empty where that is not known.

    It is the innermost line that is of no library, or where there is none the outermost one that is not ours.
    """
    if type(error) is Raised:
        error = error.error
    lines = [(frame.f_code, number) for frame, number in traceback.walk_tb(error.__traceback__)]
    theirs = [one for one in lines if not one[0].co_filename.startswith(("<", OURS))]
    own = [one for one in theirs if not one[0].co_filename.startswith(_LIBRARIES)]
    if not theirs:
        return ""
    code, number = own[-1] if own else theirs[0]
    return f" ({'/'.join(Path(code.co_filename).parts[-2:])}:{number}, in {code.co_name})"


def text_of(value: object) -> str:
    """The words of an exception, or of anything else; without the address that SQLAlchemy puts after each of its own."""
    words = _made(lambda: str(value))
    return _BACKGROUND.sub("", words) if "sqlalche.me" in words else words


def shown(value: object) -> str:
    """A value as it shows itself."""
    return _made(lambda: repr(value))


def _made(make: Callable[[], str]) -> str:
    try:
        return str.__str__(make())  # what they made may be a text of a type of the user's
    except BaseException as failed:
        let_through(failed)
        return f"(no words can be made of it: {type(failed).__name__})"


def let_through(error: BaseException) -> None:
    """Raises it again where it is a person's Ctrl-C, which Python raises in the main thread: no user's code is at fault then."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error
