"""What all commands share: finding the app, the JSON envelope, exit codes, and errors as text. Reads no record.

A command is a plain function with annotations of typer. It raises; `guarded` prints the error and ends with its exit code.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import json
import logging
import os
import sys
import sysconfig
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of
from groundstate.app.store import Store
from groundstate.engine.operate.shard_check import Admitted
from groundstate.engine.sql import db_errors, lock_waits, schema
from groundstate.engine.sql.safe_text import describe, text_of
from groundstate.store import connect, safe_name
from groundstate.store.port import Database, Liveness
from groundstate.values.errors import (
    ConflictError,
    DeclarationError,
    GroundstateError,
    NotFoundError,
    NotInitialisedError,
    StateRefusedError,
    StoreRefusedError,
    TransportDownError,
    TransportRefusedError,
)

log = logging.getLogger("groundstate")
P = ParamSpec("P")
T = TypeVar("T")
_YEARS = (1900, 9000)  # of points in time that a person gives
FORMAT = 1  # version of all --json output: it grows if a field changes its meaning or is removed, not if one is added


class Code(enum.IntEnum):
    """The exit codes of every command. The command `demo` has its own, which its help lists."""

    OK = 0  # the command is done; work may be left
    FINDINGS = 1  # `check` found problems, or an act on an attempt is not possible now
    USAGE = 2  # the arguments, or the app that they name, are wrong; nothing was changed
    NOT_FOUND = 3  # there is no such record, table, attempt or reaction
    DATABASE = 4  # the database is not initialised, refused, not reached, locked or damaged; or the transport is refused
    FAILED = 5  # an error in groundstate itself; --debug shows where
    LEFT_BEHIND = 6  # `run` was stopped, and a worker's own thread did not end, since a handler hangs
    # 128 + n: a second signal n ended the process at once (130 for SIGINT, 143 for SIGTERM)


AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:NAME", help="The app; else $GROUNDSTATE_APP, else \\[tool.groundstate] app in pyproject.toml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="NAME", help="Of this store or shard alone, by its name, or its URL where it has none.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class CommandFailed(GroundstateError):
    """Raised if a command cannot go on. The message is for the person who typed the command, and names the cure."""

    def __init__(self, message: str, code: Code = Code.USAGE) -> None:
        super().__init__(message)
        self.code = code


# ---- the app -------------------------------------------------------------------------------------------------------------------
def find_app(given: str | None) -> App:
    """Return the app that `given` names, or else the environment, or else pyproject.toml. Raises CommandFailed."""
    named, place = _named(given)
    module_name, colon, name = named.partition(":")
    if not colon or not module_name or not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise CommandFailed(f"{place}: {named!r} is not MODULE:NAME; for example shop:app for `app` in shop.py")
    module = _imported(module_name, place)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            apps = sorted(key for key, value in vars(module).items() if isinstance(value, App))
            there = f"; it has {', '.join(f'{module_name}:{app}' for app in apps)}" if apps else " and no App at all"
            raise CommandFailed(f"{place}: module {module_name!r} has no {name!r}{there}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise CommandFailed(f"{place}: {named} is a {type(found).__name__}, and no groundstate App")
    found.check_declarations()
    return found


def tell_of_an_empty(app: App) -> None:
    """Print a line on stderr if the app declares nothing, since every answer would look healthy then."""
    if app.declares_nothing is not None:
        print(escape_for_terminal(app.declares_nothing), file=sys.stderr)


def _named(given: str | None) -> tuple[str, str]:
    if given is not None:
        return given, "--app"
    if os.environ.get("GROUNDSTATE_APP"):
        return os.environ["GROUNDSTATE_APP"], "$GROUNDSTATE_APP"
    path = Path("pyproject.toml")
    if path.is_file():
        try:
            written = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise CommandFailed(f"pyproject.toml cannot be read: {error}") from None
        tool = written.get("tool")
        ours = tool.get("groundstate") if isinstance(tool, dict) else None
        if isinstance(ours, dict) and "app" in ours:
            return str(ours["app"]), "[tool.groundstate] app in pyproject.toml"
    raise CommandFailed(
        'which app? Give --app MODULE:NAME, set $GROUNDSTATE_APP, or write app = "MODULE:NAME" below [tool.groundstate] in pyproject.toml'
    )


def _imported(module_name: str, place: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise CommandFailed(f"{place}: {module_name} cannot be imported: {text_of(error)} ({_line_of(error)})") from error
        raise CommandFailed(f"{place}: there is no module {module_name!r} in {here} or on Python's path") from error
    except DeclarationError:
        raise
    except SystemExit as error:
        why = f"ends the process when it is imported (exit {error.code}); keep what runs under __main__"
        raise CommandFailed(f"{place}: {module_name} {why}") from None
    except Exception as error:
        raise CommandFailed(f"{place}: {module_name} cannot be imported: {describe(error)} ({_line_of(error)})") from error


def _line_of(error: BaseException) -> str:
    """Return the file and line where the user's code raised: the innermost frame that is not in Python's own library."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_pythons(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown line"


def _is_pythons(file: str) -> bool:
    library = sysconfig.get_path("stdlib")
    return file.startswith("<frozen ") or (file.startswith(library) and "-packages" not in file.removeprefix(library))


# ---- arguments -------------------------------------------------------------------------------------------------------------------
def moment_of(option: str, typed: str) -> datetime:
    """Parse a point in time in ISO 8601; without a zone it is in UTC. Raises CommandFailed.

    The first and the last years of the calendar are refused: what is a day or a month from there is no time any more.
    """
    try:
        moment = datetime.fromisoformat(typed.strip())
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandFailed(f"{option}: {typed!r} is no point in time; write it as 2026-12-24T18:00Z, or 2026-12-24T18:00+01:00") from None
    if not _YEARS[0] <= moment.year <= _YEARS[1]:
        raise CommandFailed(f"{option}: {typed!r} is too far away; give a time in the years {_YEARS[0]} to {_YEARS[1]}")
    return moment


# ---- the stores ----------------------------------------------------------------------------------------------------------------
@contextmanager
def open_store_read_only(store: Store) -> Iterator[tuple[Database, Liveness]]:
    """Open a store for reading only: no file is created, and no worker begins. Raises StoreRefusedError or NotInitialisedError."""
    database, make_liveness, _ = connect.open_store(store.settings())
    refuse_missing(database)
    try:
        schema.check(database)
        yield database, make_liveness()
    except DBAPIError as error:
        hidden = lock_waits.who_hides_ours(database) if db_errors.locked(error) else None
        refused = database.refusal(error.orig) if hidden is None else StoreRefusedError(hidden)
        if refused is None:
            raise
        raise refused from error
    finally:
        database.close()


REFUSED = "A start is refused: "


def not_apart(app: App, store: Store, database: Database, admitted: Admitted) -> str | None:
    """Return why a start would refuse this database, with the cure: it conflicts with one that was admitted before it, such as the same one
    twice.

    Returns None if there is no conflict.
    """
    if len(databases_of(app)) < 2:
        return None
    shards = next(one.databases for one in app.stores if store in one.databases)
    try:
        admitted.admit(store.label, database, reactions_of(app, store) if len(shards) > 1 else (), [one.label for one in shards])
    except StoreRefusedError as error:
        return str(error)
    return None


def refuse_missing(database: Database) -> None:
    """Raise NotInitialisedError if the database file does not exist, since a command that only reads must not create it."""
    path = database.missing()
    if path is not None:
        raise NotInitialisedError(
            f"there is no database at {path}: run `groundstate init` once, in the folder where the app runs. Where it was there before, put"
            " it back, and start with `groundstate run --after-restore`"
        )


def title_of(store: Store) -> str:
    """Return a store's label for people: its name together with its URL, or the URL alone if it has no name."""
    return store.label if store.name is None else f"{store.name} ({safe_name.name_of(store.settings().url)})"


def chosen(stores: Sequence[Store], name: str | None) -> list[Store]:
    """Return the store that --store names, or all stores if it was not given. Raises CommandFailed if there is no such store."""
    if name is None:
        return list(stores)
    found = [store for store in stores if name in (store.label, title_of(store)) or name == safe_name.name_of(store.settings().url)]
    if not found:
        raise CommandFailed(f"--store: there is no {name!r} here; there are {', '.join(store.label for store in stores)}")
    return found


@dataclasses.dataclass(frozen=True)
class Unusable:
    """A store that could not be read, while others could."""

    store: str
    kind: str
    message: str


class StoreReader:
    """Reads one store after another.

    A store that cannot be read is reported at the end, and does not keep the others from being read. If there is only one store, its error
    is raised.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self.unusable: list[Unusable] = []
        self._first: Exception | None = None

    def each(self, ask: Callable[[Store], T]) -> list[tuple[Store, T]]:
        """Return each store with its result of `ask`. Raises the first error if no store can be read."""
        answers: list[tuple[Store, T]] = []
        for store in self.stores:
            try:
                answers.append((store, ask(store)))
            except (StoreRefusedError, NotInitialisedError, DBAPIError) as error:
                if len(self.stores) == 1:
                    raise
                self._first = self._first or error
                self.unusable.append(Unusable(store.label, type(error).__name__, words_of(error)))
        if not answers and self._first is not None:
            raise self._first
        return answers

    @property
    def said(self) -> dict[str, Any]:
        """The stores that could not be read, as a field for JSON output. It is empty if all could be read."""
        return {"unusable": self.unusable} if self.unusable else {}

    def end(self) -> None:
        """Print on stderr which stores could not be read, and exit with code 4 if there are any. To be called after all other output."""
        for one in self.unusable:
            print(f"{escape_for_terminal(one.store)} could not be asked: {one.message}", file=sys.stderr)
        if self.unusable:
            raise typer.Exit(Code.DATABASE)


# ---- output --------------------------------------------------------------------------------------------------------------------
def escape_for_terminal(words: object) -> str:
    """Return text for a terminal, with control characters, escapes and direction marks of data written out (hazard 54)."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode()
        for one in (words if isinstance(words, str) else text_of(words))
    )


class Neutral(logging.Formatter):
    """Formats a log line so that nothing from data reaches the terminal as an escape or looks like a line of its own.

    Tracebacks keep their several lines.
    """

    def __init__(self, fmt: str, *, stores: bool = False) -> None:
        """Set the format. stores: whether there are several stores, so that each line must name its store."""
        super().__init__(fmt)
        self._stores = stores

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802  # logging's own names
        """Return the time of the line in UTC, as the commands and the JSON log tell it."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}Z"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging.Formatter gives the name
        """Return the line without its traceback. The stack of a stuck thread follows in indented lines, as in a traceback."""
        store = getattr(record, "store", None) if self._stores else None
        if store and store not in record.message:
            record.message = f"{store}: {record.message}"
        said, stack = super().formatMessage(record), getattr(record, "stack", None)
        if not stack or not said.endswith(stack):
            return escape_for_terminal(said)
        return "\n".join(
            [escape_for_terminal(said.removesuffix(stack).rstrip()), *(f"  {escape_for_terminal(line)}" for line in stack.splitlines())]
        )

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging.Formatter gives the name
        """Return the traceback, with each of its lines made plain."""
        return "\n".join(escape_for_terminal(line) for line in super().formatException(ei).splitlines())


def _log_plainly() -> None:
    """Log warnings on stderr as plain lines, for a command that ends. A worker sets up its own log."""
    handler = logging.StreamHandler()
    handler.setFormatter(Neutral("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def console(*, stderr: bool = False) -> Console:
    """Return a console that does not interpret markup. It is as wide as the terminal, or 120 columns if the output is no terminal."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 120
    return made


def say_json(command: str, content: Mapping[str, Any]) -> None:
    """Print the JSON envelope: {"groundstate": 1, "command": ...} with the fields of `content` after these."""
    print(json.dumps({"groundstate": FORMAT, "command": command, **_jsonable(content)}, ensure_ascii=True, indent=2))


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [_jsonable(one) for one in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, enum.Enum):
        return _jsonable(value.value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def format_time_for_people(moment: datetime | None, now: datetime | None = None) -> str:
    """Return a point in time for people: in UTC to the second, and if `now` is given how far it is from now."""
    if moment is None:
        return "-"
    words = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return words if now is None else f"{words} ({_distance(moment - now)})"


def _distance(difference: timedelta) -> str:
    seconds = abs(difference.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"in {seconds / length:.0f} {unit}" if difference > timedelta() else f"{seconds / length:.0f} {unit} ago"
    return f"in {seconds:.0f} s" if difference > timedelta() else f"{seconds:.0f} s ago"


# ---- errors --------------------------------------------------------------------------------------------------------------------
def code_of(error: BaseException) -> Code:
    """Return the exit code for an error that a command raised."""
    match error:
        case CommandFailed():
            return error.code
        case NotFoundError():
            return Code.NOT_FOUND
        case NotInitialisedError() | StoreRefusedError() | TransportRefusedError() | TransportDownError() | DBAPIError():
            return Code.DATABASE
        case ConflictError() | StateRefusedError():
            return Code.FINDINGS
        case DeclarationError():
            return Code.USAGE
        case _:
            return Code.FAILED


def words_of(error: BaseException) -> str:
    """Return the error as text of one or a few lines, without statement, parameters or traceback."""
    if isinstance(error, DBAPIError):
        if db_errors.server_did_not_answer(error):
            return f"the database does not answer: {db_errors.SILENT} ({escape_for_terminal(db_errors.database_message(error))})"
        return f"the database says: {escape_for_terminal(db_errors.database_message(error))}{_cure(str(error.orig))}"
    if isinstance(error, GroundstateError):
        return "\n".join(escape_for_terminal(line) for line in str(error).splitlines())
    if isinstance(error, SQLAlchemyError):
        return f"SQLAlchemy says: {escape_for_terminal(str(error).splitlines()[0])}"
    return f"{type(error).__name__}: {escape_for_terminal(error)} (--debug shows where)"


def _cure(said: str) -> str:
    if "locked" in said or "lock timeout" in said:
        return "; another process keeps it locked: try again when its transaction has ended"
    if "no such table" in said or ("relation" in said and "does not exist" in said):
        return "; the app's own tables are made by your migrations, or for a first try by `groundstate init --tables`"
    if "malformed" in said:
        return "; the file is damaged: put back a backup, then `groundstate run --after-restore`"
    if any(words in said for words in db_errors.NO_SPACE):
        return f"; {db_errors.SPACE}"
    if "readonly database" in said:
        return "; let this user write to the file and to its folder"
    if "no such column" in said or ("column" in said and "does not exist" in said):
        return f"; {db_errors.NO_COLUMN}"
    if "permission denied" in said:
        return (
            "; to look, this user needs SELECT on the app's tables and on groundstate's; to carry out, settle, retry, forget or trust,"
            " INSERT, UPDATE and DELETE on groundstate's and what the handlers do to the app's; `init` and `triggers` want who owns"
            " the tables (docs/operating.md, Rights)"
        )
    return ""


def refuse_no_text(what: str, value: object) -> None:
    """Raise CommandFailed for an argument with a NUL or with bytes that are no UTF-8, which no database can keep as text."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, str) and ("\0" in one or not _is_text(one)):
            raise CommandFailed(f"{what}: {one!r} is no text: it has a NUL in it, or bytes that are no UTF-8")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def guarded(command: str, function: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command so that its errors are printed on stderr, and with --json as JSON on stdout too, and end with their exit codes."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            for name, value in kwargs.items():
                refuse_no_text(name.replace("_", "-"), value)
            if command != "run":
                _log_plainly()
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort, KeyboardInterrupt):
            raise
        except BrokenPipeError:
            _end_without_reader()
        except Exception as error:  # the error is printed, and the command ends with its exit code
            if kwargs.get("log_json"):
                words, code = words_of(error), int(code_of(error))
                log.exception("%s", words, extra={"event": "run_failed", "exit_code": code}, exc_info=bool(kwargs.get("debug")))
                raise typer.Exit(code_of(error)) from None
            if kwargs.get("debug"):
                traceback.print_exc()
            if kwargs.get("as_json"):
                said = {"kind": type(error).__name__, "message": words_of(error), "exit_code": int(code_of(error))}
                say_json(command, {"error": said})
            print(f"groundstate {command}: {words_of(error)}", file=sys.stderr)
            raise typer.Exit(code_of(error)) from None

    return run


def _end_without_reader() -> NoReturn:
    """Exit with 0 after the reader of our output (`| head`) has gone. stdout is sent to os.devnull, so that Python's last flush does not
    fail.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(Code.OK)
