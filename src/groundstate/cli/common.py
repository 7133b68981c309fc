"""What all commands share: finding the app, the JSON envelope, exit codes, and errors as text.

A command is a plain function with annotations of typer. If it raises, `exit_with_code_on_error` prints the error, and ends the process with
the exit code of that error.
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
from groundstate.engine.operate.shard_check import AdmittedDatabases
from groundstate.engine.sql import db_errors, lock_waits, schema
from groundstate.engine.sql.safe_text import describe_exception, safe_str
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
_YEARS = (1900, 9000)  # the first and the last year from which a person may give a point in time
FORMAT = 1  # version of all --json output: incremented if a field is removed or changes its meaning, not if a field is added


class Code(enum.IntEnum):
    """The exit codes of all commands except `demo`, whose help lists its own."""

    OK = 0  # the command is done; work may be left
    FINDINGS = 1  # `check` found problems, or an action on an attempt is not possible now
    USAGE = 2  # the arguments, or the app that they name, are wrong; nothing was changed
    NOT_FOUND = 3  # there is no such record, table, attempt or reaction
    DATABASE = 4  # the database is not initialised, refused, not reached, locked or damaged; or the transport cannot be used
    FAILED = 5  # an error in groundstate itself; --debug shows where
    LEFT_BEHIND = 6  # `run` was stopped, and a worker's own thread did not end, since a handler hangs
    # There is one more: 128 + n if a second signal n ended the process at once (130 for SIGINT, 143 for SIGTERM).


AppOption = Annotated[
    str | None,
    typer.Option(
        "--app", metavar="MODULE:NAME", help="The app. Default: $GROUNDSTATE_APP, then \\[tool.groundstate] app in pyproject.toml."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="NAME", help="Only this store or shard: its name, or its URL if it has no name.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class CommandFailed(GroundstateError):
    """A command cannot go on. The message is for the person who typed the command, and names the cure."""

    def __init__(self, message: str, code: Code = Code.USAGE) -> None:
        super().__init__(message)
        self.code = code


# ---- the app -------------------------------------------------------------------------------------------------------------------
def find_app(given: str | None) -> App:
    """Return the app that the argument `given` names; if that is None, the app that $GROUNDSTATE_APP or pyproject.toml names. Raises
    CommandFailed if no app is named.
    """
    named, place = _app_name_and_source(given)
    module_name, colon, name = named.partition(":")
    if not colon or not module_name or not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise CommandFailed(f"{place}: {named!r} is not MODULE:NAME; for example shop:app for `app` in shop.py")
    module = _import_module_of_app(module_name, place)
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


def warn_if_nothing_declared(app: App) -> None:
    """Print a line on stderr if the app declares nothing, since then every report would look healthy."""
    if app.declares_nothing is not None:
        print(escape_for_terminal(app.declares_nothing), file=sys.stderr)


def _app_name_and_source(given: str | None) -> tuple[str, str]:
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


def _import_module_of_app(module_name: str, place: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise CommandFailed(f"{place}: {module_name} cannot be imported: {safe_str(error)} ({_file_and_line_of(error)})") from error
        raise CommandFailed(f"{place}: there is no module {module_name!r} in {here} or on Python's path") from error
    except DeclarationError:
        raise
    except SystemExit as error:
        why = f"ends the process when it is imported (exit {error.code}); put such code under `if __name__ == '__main__':`"
        raise CommandFailed(f"{place}: {module_name} {why}") from None
    except Exception as error:
        raise CommandFailed(
            f"{place}: {module_name} cannot be imported: {describe_exception(error)} ({_file_and_line_of(error)})"
        ) from error


def _file_and_line_of(error: BaseException) -> str:
    """Return the file and line where the user's code raised: those of the innermost frame that is not in Python's standard library."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_in_standard_library(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown line"


def _is_in_standard_library(file: str) -> bool:
    library = sysconfig.get_path("stdlib")
    return file.startswith("<frozen ") or (file.startswith(library) and "-packages" not in file.removeprefix(library))


# ---- arguments -------------------------------------------------------------------------------------------------------------------
def parse_moment(option: str, typed: str) -> datetime:
    """Parse a point in time in ISO 8601; without a zone it is in UTC. Raises CommandFailed if the text is no point in time.

    Years before `_YEARS[0]` or after `_YEARS[1]` are refused: near the ends of the calendar, adding a duration would overflow.
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
    """Open a store, but create no file and register no worker. Raises StoreRefusedError or NotInitialisedError if it cannot be used."""
    database, make_liveness, _ = connect.open_store(store.settings())
    refuse_missing_database(database)
    try:
        schema.check_tables(database)
        yield database, make_liveness()
    except DBAPIError as error:
        hidden = lock_waits.describe_lock_against_our_reads(database) if db_errors.is_lock_timeout(error) else None
        refused = database.refusal_for_error(error.orig) if hidden is None else StoreRefusedError(hidden)
        if refused is None:
            raise
        raise refused from error
    finally:
        database.close()


REFUSED = "A start is refused: "


def find_conflict_with_admitted(app: App, store: Store, database: Database, admitted: AdmittedDatabases) -> str | None:
    """Return why a start would refuse this database, with the cure: it is the same as another database of the app, or conflicts with one.

    Returns None, and adds the database to `admitted`, if there is no conflict. admitted: the databases of the app that were checked before.
    """
    if len(databases_of(app)) < 2:
        return None
    shards = next(one.databases for one in app.stores if store in one.databases)
    try:
        admitted.add_and_compare(store.label, database, reactions_of(app, store) if len(shards) > 1 else (), [one.label for one in shards])
    except StoreRefusedError as error:
        return str(error)
    return None


def refuse_missing_database(database: Database) -> None:
    """Raise NotInitialisedError if the database file does not exist, since a command that only reads must not create it."""
    path = database.missing_file()
    if path is not None:
        raise NotInitialisedError(
            f"there is no database at {path}: run `groundstate init` once, in the folder where the app runs. If it was there before, put"
            " it back, and start with `groundstate run --after-restore`"
        )


def store_title(store: Store) -> str:
    """Return the title of a store for people: its name followed by its URL, or only the URL if it has no name."""
    return store.label if store.name is None else f"{store.name} ({safe_name.label_of_url(store.settings().url)})"


def choose_stores(stores: Sequence[Store], name: str | None) -> list[Store]:
    """Return the store that --store names, or all stores if it was not given. Raises CommandFailed if there is no such store."""
    if name is None:
        return list(stores)
    found = [store for store in stores if name in (store.label, store_title(store)) or name == safe_name.label_of_url(store.settings().url)]
    if not found:
        raise CommandFailed(f"--store: there is no {name!r} here; there are {', '.join(store.label for store in stores)}")
    return found


@dataclasses.dataclass(frozen=True)
class UnreadableStore:
    """A store that could not be read, while another store could: the store's label, and the error's class name and message."""

    store: str
    kind: str
    message: str


class StoreReader:
    """Reads one store after another.

    If a store cannot be read, the other stores are still read, and the unreadable store is reported at the end. If there is only one store,
    its error is raised.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self.unreadable: list[UnreadableStore] = []
        self._first: Exception | None = None

    def read_each(self, ask: Callable[[Store], T]) -> list[tuple[Store, T]]:
        """Return a pair (store, result of `ask`) for each store that can be read. Raises the first error if no store can be read."""
        answers: list[tuple[Store, T]] = []
        for store in self.stores:
            try:
                answers.append((store, ask(store)))
            except (StoreRefusedError, NotInitialisedError, DBAPIError) as error:
                if len(self.stores) == 1:
                    raise
                self._first = self._first or error
                self.unreadable.append(UnreadableStore(store.label, type(error).__name__, error_in_words(error)))
        if not answers and self._first is not None:
            raise self._first
        return answers

    @property
    def unusable_stores_json(self) -> dict[str, Any]:
        """A dict with the field `unusable`, for JSON output: the stores that could not be read. The dict is empty if all stores could be
        read.
        """
        return {"unusable": self.unreadable} if self.unreadable else {}

    def report_unreadable(self) -> None:
        """Print on stderr which stores could not be read, and exit with code 4 if there are such stores. Call it after all other output."""
        for one in self.unreadable:
            print(f"{escape_for_terminal(one.store)} could not be read: {one.message}", file=sys.stderr)
        if self.unreadable:
            raise typer.Exit(Code.DATABASE)


# ---- output --------------------------------------------------------------------------------------------------------------------
def escape_for_terminal(words: object) -> str:
    """Return text that is safe for a terminal: control characters and direction marks are replaced by Python escapes (hazard 54)."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode()
        for one in (words if isinstance(words, str) else safe_str(words))
    )


class EscapingFormatter(logging.Formatter):
    """Formats a log line so that data in it cannot reach the terminal as an escape sequence, or look like another line.

    A traceback stays on several lines.
    """

    def __init__(self, fmt: str, *, stores: bool = False) -> None:
        """Set the format. stores: whether there are several stores, so that each line must name its store."""
        super().__init__(fmt)
        self._stores = stores

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802  # logging's own names
        """Return the time of the line in UTC, as in the output of commands and in the JSON log."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}Z"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging.Formatter gives the name
        """Return the line without its traceback. If the record has the stack of a stuck thread, the stack follows in indented lines."""
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
        """Return the traceback, with each of its lines escaped."""
        return "\n".join(escape_for_terminal(line) for line in super().formatException(ei).splitlines())


def _set_up_plain_log() -> None:
    """Log warnings on stderr as plain lines. This is for all commands but `run`, which sets up its own log."""
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def console(*, stderr: bool = False) -> Console:
    """Return a console that does not interpret markup. It is as wide as the terminal, or 120 columns wide if the output is no terminal."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 120
    return made


def print_json(command: str, content: Mapping[str, Any]) -> None:
    """Print the JSON envelope on stdout: {"groundstate": 1, "command": ...}, followed by the fields of `content`."""
    print(json.dumps({"groundstate": FORMAT, "command": command, **_to_jsonable(content)}, ensure_ascii=True, indent=2))


def _to_jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _to_jsonable(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [_to_jsonable(one) for one in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, enum.Enum):
        return _to_jsonable(value.value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def format_time_for_people(moment: datetime | None, now: datetime | None = None) -> str:
    """Return a point in time for people: in UTC, to the second. If `now` is given, the distance from `now` follows, such as (3 min ago)."""
    if moment is None:
        return "-"
    words = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return words if now is None else f"{words} ({_time_distance_in_words(moment - now)})"


def _time_distance_in_words(difference: timedelta) -> str:
    seconds = abs(difference.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"in {seconds / length:.0f} {unit}" if difference > timedelta() else f"{seconds / length:.0f} {unit} ago"
    return f"in {seconds:.0f} s" if difference > timedelta() else f"{seconds:.0f} s ago"


# ---- errors --------------------------------------------------------------------------------------------------------------------
def exit_code_of(error: BaseException) -> Code:
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


def error_in_words(error: BaseException) -> str:
    """Return the error as one or a few lines of text, without SQL statement, parameters or traceback."""
    if isinstance(error, DBAPIError):
        if db_errors.is_server_silent(error):
            return f"the database does not answer: {db_errors.SILENT} ({escape_for_terminal(db_errors.database_message(error))})"
        return f"the database says: {escape_for_terminal(db_errors.database_message(error))}{_cure_of_database_error(str(error.orig))}"
    if isinstance(error, GroundstateError):
        return "\n".join(escape_for_terminal(line) for line in str(error).splitlines())
    if isinstance(error, SQLAlchemyError):
        return f"SQLAlchemy says: {escape_for_terminal(str(error).splitlines()[0])}"
    return f"{type(error).__name__}: {escape_for_terminal(error)} (--debug shows where)"


def _cure_of_database_error(said: str) -> str:
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
            "; to read, this user needs SELECT on the app's tables and on groundstate's; to carry out, settle, retry, forget or trust,"
            " INSERT, UPDATE and DELETE on groundstate's and what the handlers do to the app's; `init` and `triggers` must be run by"
            " the owner of the tables (docs/operating.md, Rights)"
        )
    return ""


def refuse_unstorable_text(what: str, value: object) -> None:
    """Raise CommandFailed if an argument contains a NUL character or bytes that are no UTF-8, which no database can store as text."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, str) and ("\0" in one or not _is_utf8(one)):
            raise CommandFailed(f"{what}: {one!r} is no text: it contains a NUL character, or bytes that are no UTF-8")


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def exit_with_code_on_error(command: str, function: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command so that an error is printed on stderr, and with --json on stdout too, and the process ends with its exit code."""

    @functools.wraps(function)
    def run_command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            for name, value in kwargs.items():
                refuse_unstorable_text(name.replace("_", "-"), value)
            if command != "run":
                _set_up_plain_log()
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort, KeyboardInterrupt):
            raise
        except BrokenPipeError:
            _exit_after_broken_pipe()
        except Exception as error:  # printed below, before the process ends with the error's exit code
            if kwargs.get("log_json"):
                words, code = error_in_words(error), int(exit_code_of(error))
                log.exception("%s", words, extra={"event": "run_failed", "exit_code": code}, exc_info=bool(kwargs.get("debug")))
                raise typer.Exit(exit_code_of(error)) from None
            if kwargs.get("debug"):
                traceback.print_exc()
            if kwargs.get("as_json"):
                said = {"kind": type(error).__name__, "message": error_in_words(error), "exit_code": int(exit_code_of(error))}
                print_json(command, {"error": said})
            print(f"groundstate {command}: {error_in_words(error)}", file=sys.stderr)
            raise typer.Exit(exit_code_of(error)) from None

    return run_command


def _exit_after_broken_pipe() -> NoReturn:
    """Exit with code 0 after the reader of stdout, such as `| head`, has closed the pipe. stdout is redirected to os.devnull, so that
    Python's last flush does not fail.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(Code.OK)
