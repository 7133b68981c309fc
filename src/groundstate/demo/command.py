"""The command `groundstate demo`: checks the arguments, runs the demo (module `director`), and prints the result and the next commands."""

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
from groundstate.demo.show import Show, print_balance_sheet

UNBALANCED, FAILED, USAGE = 1, 3, 2  # exit codes
_NEEDS = ("uvicorn", "starlette", "httpx", "aiosmtpd")


def demo(
    postgres: Annotated[
        str | None, typer.Option(metavar="URL", help="An empty PostgreSQL database to use; without it, SQLite in the folder.")
    ] = None,
    orders: Annotated[int, typer.Option(min=1, max=100_000, help="How many orders are placed.")] = 300,
    kills: Annotated[int, typer.Option(min=0, max=1_000, help="How often the worker is killed with SIGKILL.")] = 8,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the random numbers: the same seed gives the same failures. Random by default.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="An empty folder for the database, the ledgers and the logs. Default: ./groundstate-demo/run-N.")
    ] = None,
) -> None:
    """Watch a small shop being killed again and again, and its books balance afterwards. It takes about a minute.

    A web shop, customers, a payment gateway, a mail server and the worker run as separate processes on the loopback interface. Exit codes:
    0 the books balance, 1 they do not, 2 wrong arguments, 3 the demo could not be completed, 130 interrupted.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    _exit_if_packages_are_missing(console)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    where = _create_folder(console, folder)
    url = f"sqlite:///{where / 'shop.db'}" if postgres is None else _check_database_is_empty(console, postgres)
    plan = Plan(url, where, orders, kills, seed)
    console.print(f"The shop is in {where}, the seed is {seed}.")
    try:
        with Show(console, orders, kills) as show:
            found = Director(plan, show).run()
    except DemoFailed as failure:
        _exit_with_message(console, f"{failure}\nThe logs are in {where / 'logs'}.", FAILED)
    except KeyboardInterrupt:
        _exit_with_message(console, f"Interrupted; every process was ended. What was done so far is in {where}.", 130)
    balance = books.compare_books(found)
    print_balance_sheet(console, balance)
    _print_next_commands(console, plan, balance)
    raise typer.Exit(UNBALANCED if balance.faults else 0)


def _exit_with_message(console: Console, message: str, code: int) -> NoReturn:
    console.print(Text(message, style="red"))
    raise typer.Exit(code)


def _exit_if_packages_are_missing(console: Console) -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        _exit_with_message(console, f"The demo needs {', '.join(missing)}: pip install 'groundstate[demo]'", USAGE)


def _create_folder(console: Console, given: Path | None) -> Path:
    """Create the demo's folder and return its absolute path: the given folder, or by default the next free ./groundstate-demo/run-N.

    Exits with an error if the given folder is not empty.
    """
    if given is None:
        given = next(path for number in count(1) if not (path := Path("groundstate-demo") / f"run-{number}").exists())
    elif given.exists() and (not given.is_dir() or any(given.iterdir())):
        _exit_with_message(console, f"{given} is not an empty folder: give one that is empty or does not exist", USAGE)
    try:
        given.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _exit_with_message(console, f"{given} cannot be created ({error.strerror}): give another --folder", USAGE)
    return given.resolve()


def _check_database_is_empty(console: Console, url: str) -> str:
    """Return this URL if its PostgreSQL database has no tables. Otherwise exit with an error, since the demo must not touch existing
    data.
    """
    try:
        if make_url(url).get_backend_name() != "postgresql":
            _exit_with_message(
                console, f"--postgres {url!r} is no PostgreSQL URL; for example postgresql://user@localhost/groundstate_demo", USAGE
            )
        engine = database.create_shop_engine(url)
        tables = inspect(engine).get_table_names()
        engine.dispose()
    except SQLAlchemyError as error:
        _exit_with_message(console, f"The database of --postgres cannot be reached: {error}", USAGE)
    if tables:
        _exit_with_message(
            console,
            f"The database of --postgres has tables already ({', '.join(tables[:3])}): create an empty database for the demo",
            USAGE,
        )
    return url


def _print_next_commands(console: Console, plan: Plan, balance: books.Balance) -> None:
    """Print commands with which the user can inspect the result; the commands work after all processes of the demo have ended."""
    looked_at = balance.held[0].order if balance.held else 1
    lines = [f"export {name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    lines += ["groundstate pending", f"groundstate why orders {looked_at}", "groundstate held", "groundstate check"]
    console.print("\nNothing runs any more; the database is yours to look into:", style="bold")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
    others = f"{books.CUSTOMERS}, {books.CHARGES} and {books.MAILS}"
    console.print(Text(f"The other books are {others} in {plan.folder}"), soft_wrap=True)
