"""Starts the demo's servers on a listening socket that the director created, so that no port is guessed or waited for."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette


class Arguments(argparse.Namespace):
    """The command-line arguments of a server; each server reads those that it needs."""

    fd: int
    ledger: Path
    seed: int


def arguments() -> Arguments:
    """Parse the command-line arguments of this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True, help="an inherited listening socket")
    parser.add_argument("--ledger", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(namespace=Arguments())


def listening(fd: int) -> socket.socket:
    """Return the socket behind an inherited descriptor."""
    return socket.socket(fileno=fd)


def serve(app: Starlette, fd: int) -> None:
    """Serve until the process is told to end. It logs nothing, since here connections are dropped on purpose."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening(fd)])
