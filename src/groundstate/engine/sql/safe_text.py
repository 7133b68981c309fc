"""Makes texts of the user's objects and exceptions, even if these raise while their text is made. If the user's code raises a
BaseException that is not an Exception, it is wrapped in an Exception.

An exception's `__str__`, an outcome's `__repr__` and a store's `redact` may raise, even exceptions that would end a thread. Each message
about such an object gets its text here, so that a failure is always recorded as a failure.
"""

from __future__ import annotations

import re
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BACKGROUND = re.compile(r"\s*\(Background on this error at: https://sqlalche\.me/[^)\s]*\)")  # a link that ends SQLAlchemy's messages
_OF_EXCEPTIONS = ("__traceback__", "__context__", "__cause__", "__suppress_context__")
OURS = str(Path(__file__).parents[2])  # the folder of the whole package
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


class UserCodeRaised(Exception):
    """Wraps a BaseException that the user's code raised, so that the exception does not end a thread of groundstate.

    It wraps, for example, a SystemExit that a library raised, or a proxy of an exception whose class cannot be read.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(describe_exception(error))
        self.error = error


@contextmanager
def running_user_code() -> Iterator[None]:
    """Wrap a call of the user's code: a BaseException that is not an Exception is raised as UserCodeRaised."""
    try:
        yield
    except BaseException as error:
        if has_readable_class(error):
            if isinstance(error, Exception):
                raise
            reraise_keyboard_interrupt(error)
        raise UserCodeRaised(error) from error


def has_readable_class(error: BaseException) -> bool:
    """Return whether `error.__class__` can be read, as `isinstance` has to do. If the exception is a proxy, this read may raise another
    exception.
    """
    try:
        error.__class__  # noqa: B018  # `__class__` may be a property
    except BaseException:
        return False
    return True


def original_exception(error: BaseException) -> BaseException:
    """Return the exception that the user's code raised, even if another exception hides it.

    `UserCodeRaised` may hide it. An exception that is a frozen dataclass is hidden by the error that arises when contextlib assigns its
    `__traceback__`.
    """
    if type(error) is UserCodeRaised:
        error = error.error
    met = error.__context__
    if met is not None and type(error).__name__ == "FrozenInstanceError" and _is_about_exception_attributes(error):
        return met
    return error


def _is_about_exception_attributes(error: BaseException) -> bool:
    words = safe_str(error)
    return any(name in words for name in _OF_EXCEPTIONS) or words == "can't set attribute"  # attrs raises this message, without a name


def describe_exception(error: BaseException) -> str:
    """Return one line about an exception: its type and its message."""
    error = original_exception(error)
    words = safe_str(error).strip()
    name = type(error).__name__
    return f"{name}: {words}" if words else name


def where_raised(error: BaseException) -> str:
    """Return where the user's code raised the exception, such as ' (shop/pay.py:17, in charge)'; empty if that is unknown.

    The result names the innermost line that belongs to no library. If there is none, it names the outermost line that does not belong to
    groundstate.
    """
    error = original_exception(error)
    lines = [(frame.f_code, number) for frame, number in traceback.walk_tb(error.__traceback__)]
    theirs = [one for one in lines if not one[0].co_filename.startswith(("<", OURS))]
    own = [one for one in theirs if not one[0].co_filename.startswith(_LIBRARIES)]
    if not theirs:
        return ""
    code, number = own[-1] if own else theirs[0]
    return f" ({'/'.join(Path(code.co_filename).parts[-2:])}:{number}, in {code.co_name})"


def safe_str(value: object) -> str:
    """Return `str` of an exception or of any other object, even if its `__str__` raises, and without the link that SQLAlchemy appends to
    its messages.
    """
    words = _text_or_substitute(lambda: str(value))
    return _BACKGROUND.sub("", words) if "sqlalche.me" in words else words


def safe_repr(value: object) -> str:
    """Return `repr` of a value, even if its `__repr__` raises."""
    return _text_or_substitute(lambda: repr(value))


def _text_or_substitute(make: Callable[[], str]) -> str:
    try:
        return str.__str__(make())  # the user's code may return an object of its own subclass of str
    except BaseException as failed:
        reraise_keyboard_interrupt(failed)
        return f"(no words can be made of it: {type(failed).__name__})"


def reraise_keyboard_interrupt(error: BaseException) -> None:
    """If the error is a KeyboardInterrupt in the main thread, raise it again: a person pressed Ctrl-C, and the user's code did not fail."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error
