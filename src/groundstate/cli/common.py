"""What every command shares: finding the app, the JSON envelope, exit codes, and errors in words. Looks at no record.

A command is a plain function with typer's annotations. It raises; `guarded` says what was raised and ends with the exit code of it.
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
from groundstate.app.store import Store
from groundstate.engine import locked, schema, trouble
from groundstate.engine.apart import Admitted
from groundstate.engine.guarded import describe, text_of
from groundstate.store import naming, opening
from groundstate.store.port import Database, Lives
from groundstate.values.errors import (
    Conflict,
    DeclarationError,
    GroundstateError,
    NotFound,
    NotInitialised,
    StateRefused,
    StoreRefused,
    TransportDown,
    TransportRefused,
)

log = logging.getLogger("groundstate")
P = ParamSpec("P")
T = TypeVar("T")
FORMAT = 1  # the version of every --json shape; it grows when a field changes its meaning or goes away, not when one is added


class Code(enum.IntEnum):
    """The exit codes, of every command. The demo's own are in its help."""

    OK = 0  # done; also where there is work left to do
    FINDINGS = 1  # `check` found problems; or what was asked of an attempt is not possible now
    USAGE = 2  # the arguments, or the app that they name, are wrong: nothing was touched
    NOT_FOUND = 3  # no such record, table, attempt or reaction
    DATABASE = 4  # the database cannot be used: not initialised, refused, not reached, locked, damaged; or the transport is refused
    FAILED = 5  # an error of our own; --debug shows where
    LEFT_BEHIND = 6  # `run`: told to stop, and a worker's own thread did not end: a handler hangs
    # 128 + n: ended at once by a second signal n (130 for SIGINT, 143 for SIGTERM)


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
    """A command cannot go on; the message is for the person who typed it, with the cure."""

    def __init__(self, message: str, code: Code = Code.USAGE) -> None:
        super().__init__(message)
        self.code = code


# ---- the app -------------------------------------------------------------------------------------------------------------------
def find_app(given: str | None) -> App:
    """The app that `given` names, or the environment, or pyproject.toml. Raises CommandFailed."""
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
    """On stderr, where nothing is declared: every answer would look healthy."""
    if app.declares_nothing is not None:
        print(plain(app.declares_nothing), file=sys.stderr)


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
    """Where the user's code raised it: the last line that is none of Python's own."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_pythons(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown line"


def _is_pythons(file: str) -> bool:
    library = sysconfig.get_path("stdlib")
    return file.startswith("<frozen ") or (file.startswith(library) and "-packages" not in file.removeprefix(library))


# ---- what is typed ---------------------------------------------------------------------------------------------------------------
def moment_of(option: str, typed: str) -> datetime:
    """A point in time in ISO 8601; without a zone it is in UTC. Raises CommandFailed."""
    try:
        moment = datetime.fromisoformat(typed.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandFailed(f"{option}: {typed!r} is no point in time; write it as 2026-12-24T18:00Z, or 2026-12-24T18:00+01:00") from None


# ---- the stores ----------------------------------------------------------------------------------------------------------------
@contextmanager
def looking(store: Store) -> Iterator[tuple[Database, Lives]]:
    """A store to be read and never written: no file is made, no worker begins. Raises StoreRefused, NotInitialised."""
    database, make_lives, _ = opening.open_store(store.settings())
    refuse_missing(database)
    try:
        schema.check(database)
        yield database, make_lives()
    except DBAPIError as error:
        hidden = locked.who_hides_ours(database) if trouble.locked(error) else None
        refused = database.refusal(error.orig) if hidden is None else StoreRefused(hidden)
        if refused is None:
            raise
        raise refused from error
    finally:
        database.close()


REFUSED = "A start is refused: "


def not_apart(app: App, store: Store, database: Database, admitted: Admitted) -> str | None:
    """Why a start would refuse this database beside those that were let in before it, with the cure; None where it would not."""
    if len(app.parts) < 2:
        return None
    shards = next(one.parts for one in app.stores if store in one.parts)
    try:
        admitted.admit(store.label, database, app.reactions_of(store) if len(shards) > 1 else (), [one.label for one in shards])
    except StoreRefused as error:
        return str(error)
    return None


def refuse_missing(database: Database) -> None:
    """Looking makes no file. Raises NotInitialised."""
    path = database.missing()
    if path is not None:
        raise NotInitialised(
            f"there is no database at {path}: run `groundstate init` once, in the folder where the app runs. Where it was there before, put"
            " it back, and start with `groundstate run --after-restore`"
        )


def title_of(store: Store) -> str:
    """A store's label for people: with its URL, where it has a name."""
    return store.label if store.name is None else f"{store.name} ({naming.name_of(store.settings().url)})"


def chosen(stores: Sequence[Store], name: str | None) -> list[Store]:
    """The store that --store names, or all of them. Raises CommandFailed."""
    if name is None:
        return list(stores)
    found = [store for store in stores if name in (store.label, title_of(store)) or name == naming.name_of(store.settings().url)]
    if not found:
        raise CommandFailed(f"--store: there is no {name!r} here; there are {', '.join(store.label for store in stores)}")
    return found


@dataclasses.dataclass(frozen=True)
class Unusable:
    """A store that could not be asked, while others were."""

    store: str
    kind: str
    message: str


class Asked:
    """Asks one store after another: one that cannot be used is told of, and keeps no other from being asked. A single one raises."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self.unusable: list[Unusable] = []
        self._first: Exception | None = None

    def each(self, ask: Callable[[Store], T]) -> list[tuple[Store, T]]:
        """What each says. Raises where none can be used."""
        answers: list[tuple[Store, T]] = []
        for store in self.stores:
            try:
                answers.append((store, ask(store)))
            except (StoreRefused, NotInitialised, DBAPIError) as error:
                if len(self.stores) == 1:
                    raise
                self._first = self._first or error
                self.unusable.append(Unusable(store.label, type(error).__name__, words_of(error)))
        if not answers and self._first is not None:
            raise self._first
        return answers

    @property
    def said(self) -> dict[str, Any]:
        """For JSON: nothing where all could be asked."""
        return {"unusable": self.unusable} if self.unusable else {}

    def end(self) -> None:
        """After the rest was said: which could not be asked, on stderr. Exits then."""
        for one in self.unusable:
            print(f"{plain(one.store)} could not be asked: {one.message}", file=sys.stderr)
        if self.unusable:
            raise typer.Exit(Code.DATABASE)


# ---- what is said --------------------------------------------------------------------------------------------------------------
def plain(words: object) -> str:
    """Text from data as it may go to a terminal: control characters, escapes and direction marks are written out (hazard 54)."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode()
        for one in (words if isinstance(words, str) else text_of(words))
    )


class Neutral(logging.Formatter):
    """A line of the log: nothing from data reaches the terminal as an escape, or looks like a line of its own. Tracebacks have several."""

    def __init__(self, fmt: str, *, stores: bool = False) -> None:
        """stores: there are several, and each line says which one it is about."""
        super().__init__(fmt)
        self._stores = stores

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """The line, without the traceback. Where a thread stands is told in lines of its own, indented as in one."""
        store = getattr(record, "store", None) if self._stores else None
        if store and store not in record.message:
            record.message = f"{store}: {record.message}"
        said, stack = super().formatMessage(record), getattr(record, "stack", None)
        if not stack or not said.endswith(stack):
            return plain(said)
        return "\n".join([plain(said.removesuffix(stack).rstrip()), *(f"  {plain(line)}" for line in stack.splitlines())])

    def formatException(self, ei: Any) -> str:  # noqa: N802  # as above
        """The traceback, line by line."""
        return "\n".join(plain(line) for line in super().formatException(ei).splitlines())


def _log_plainly() -> None:
    """What a command that ends logs, on stderr; a worker sets up a log of its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(Neutral("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def console(*, stderr: bool = False) -> Console:
    """Where to print; nothing in what is printed is read as markup. As wide as the terminal, and 120 columns into a pipe."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 120
    return made


def say_json(command: str, content: Mapping[str, Any]) -> None:
    """The envelope: {"groundstate": 1, "command": ..., then what the command says}."""
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


def at(moment: datetime | None, now: datetime | None = None) -> str:
    """A point in time for people: in UTC to the second, and how far from now."""
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
    """The exit code of what a command raised."""
    match error:
        case CommandFailed():
            return error.code
        case NotFound():
            return Code.NOT_FOUND
        case NotInitialised() | StoreRefused() | TransportRefused() | TransportDown() | DBAPIError():
            return Code.DATABASE
        case Conflict() | StateRefused():
            return Code.FINDINGS
        case DeclarationError():
            return Code.USAGE
        case _:
            return Code.FAILED


def words_of(error: BaseException) -> str:
    """The error in a line or a few, without statement, parameters or traceback."""
    if isinstance(error, DBAPIError):
        if trouble.silent(error):
            return f"the database does not answer: {trouble.SILENT} ({plain(trouble.said(error))})"
        return f"the database says: {plain(trouble.said(error))}{_cure(str(error.orig))}"
    if isinstance(error, GroundstateError):
        return "\n".join(plain(line) for line in str(error).splitlines())
    if isinstance(error, SQLAlchemyError):
        return f"SQLAlchemy says: {plain(str(error).splitlines()[0])}"
    return f"{type(error).__name__}: {plain(error)} (--debug shows where)"


def _cure(said: str) -> str:
    if "locked" in said or "lock timeout" in said:
        return "; another process keeps it locked: try again when its transaction has ended"
    if "no such table" in said or ("relation" in said and "does not exist" in said):
        return "; the app's own tables are made by your migrations, or for a first try by `groundstate init --tables`"
    if "malformed" in said:
        return "; the file is damaged: put back a backup, then `groundstate run --after-restore`"
    if any(words in said for words in trouble.NO_SPACE):
        return f"; {trouble.SPACE}"
    if "readonly database" in said:
        return "; let this user write to the file and to its folder"
    if "no such column" in said or ("column" in said and "does not exist" in said):
        return f"; {trouble.NO_COLUMN}"
    if "permission denied" in said:
        return (
            "; to look, this user needs SELECT on the app's tables and on groundstate's; to carry out, settle, retry, forget or trust,"
            " INSERT, UPDATE and DELETE on groundstate's and what the handlers do to the app's; `init` and `triggers` want who owns"
            " the tables (docs/operating.md, Rights)"
        )
    return ""


def refuse_no_text(what: str, value: object) -> None:
    """What no database can keep as text, and no terminal can have typed. Raises CommandFailed."""
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
    """The function with its errors said in words on stderr, and as JSON on stdout where --json was given; each has its exit code."""

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
        except Exception as error:  # said in words, with its exit code
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
    """Who read our output (`| head`) has gone: that is no error, and Python must not flush into it at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(Code.OK)
