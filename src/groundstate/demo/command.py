"""The command `groundstate demo`: its arguments, its folder, and the hints on what to look at afterwards; `director` runs the demo."""

from __future__ import annotations

import importlib.util
import secrets
import shlex
from itertools import count
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy import inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from groundstate.demo import books, database
from groundstate.demo.director import DemoFailed, Director, Plan
from groundstate.demo.show import Show, balance_sheet

UNBALANCED, FAILED, USAGE = 1, 3, 2  # exit codes
_NEEDS = ("uvicorn", "starlette", "httpx", "aiosmtpd")


def demo(
    postgres: Annotated[
        str | None, typer.Option(metavar="URL", help="An empty PostgreSQL database to use; without it, SQLite in the folder.")
    ] = None,
    orders: Annotated[int, typer.Option(min=1, max=100_000, help="How many orders are placed.")] = 300,
    kills: Annotated[int, typer.Option(min=0, max=1_000, help="How often the worker is killed with SIGKILL.")] = 8,
    seed: Annotated[int | None, typer.Option(help="The dice: the same seed, the same mischief. Random by default.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where database, ledgers and logs are left; it must be empty. Default: ./groundstate-demo/run-N.")
    ] = None,
) -> None:
    """Watch a small shop being killed again and again, and its books balance afterwards. It takes about a minute.

    A web shop, customers, a payment gateway, a mail server and the worker run as separate processes on the loopback interface. Exit codes:
    0 the books balance, 1 they do not, 2 wrong arguments, 3 the demo could not be completed, 130 interrupted.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    _refuse_what_is_missing(console)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    where = _folder(console, folder)
    url = f"sqlite:///{where / 'shop.db'}" if postgres is None else _empty_database(console, postgres)
    plan = Plan(url, where, orders, kills, seed)
    console.print(f"The shop is in {where}, the seed is {seed}.")
    try:
        with Show(console, orders, kills) as show:
            found = Director(plan, show).perform()
    except DemoFailed as failure:
        _end(console, f"{failure}\nThe logs are in {where / 'logs'}.", FAILED)
    except KeyboardInterrupt:
        _end(console, f"Interrupted; every process was ended. What was done so far is in {where}.", 130)
    balance = books.balance(found)
    balance_sheet(console, balance)
    _what_to_try(console, plan, balance)
    raise typer.Exit(UNBALANCED if balance.faults else 0)


def _end(console: Console, message: str, code: int) -> NoReturn:
    console.print(Text(message, style="red"))
    raise typer.Exit(code)


def _refuse_what_is_missing(console: Console) -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        _end(console, f"The demo needs {', '.join(missing)}: pip install 'groundstate[demo]'", USAGE)


def _folder(console: Console, given: Path | None) -> Path:
    """Return the absolute path of the demo's folder, which exists: the given one if it is empty, or else the next free
    ./groundstate-demo/run-N.
    """
    if given is None:
        given = next(path for number in count(1) if not (path := Path("groundstate-demo") / f"run-{number}").exists())
    elif given.exists() and (not given.is_dir() or any(given.iterdir())):
        _end(console, f"{given} is not an empty folder; give one that is empty or not there yet", USAGE)
    try:
        given.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _end(console, f"{given} cannot be made ({error.strerror}); give another --folder", USAGE)
    return given.resolve()


def _empty_database(console: Console, url: str) -> str:
    """Return the URL if it leads to a PostgreSQL database without tables, since the demo must not touch existing data; else exit."""
    try:
        if make_url(url).get_backend_name() != "postgresql":
            _end(console, f"--postgres {url!r} is no PostgreSQL URL; for example postgresql://user@localhost/groundstate_demo", USAGE)
        engine = database.engine(url)
        tables = inspect(engine).get_table_names()
        engine.dispose()
    except SQLAlchemyError as error:
        _end(console, f"The database of --postgres cannot be reached: {error}", USAGE)
    if tables:
        _end(console, f"The database of --postgres has tables already ({', '.join(tables[:3])}): create one for the demo alone", USAGE)
    return url


def _what_to_try(console: Console, plan: Plan, balance: books.Balance) -> None:
    """Print the commands with which the user can inspect the result; they need no process of the demo."""
    looked_at = balance.held[0].order if balance.held else 1
    lines = [f"export {name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    lines += ["groundstate pending", f"groundstate why orders {looked_at}", "groundstate held", "groundstate check"]
    console.print("\nNothing runs any more; the database is yours to look into:", style="bold")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
    others = f"{books.CUSTOMERS}, {books.CHARGES} and {books.MAILS}"
    console.print(Text(f"The other books are {others} in {plan.folder}"), soft_wrap=True)
