"""How the demo's own servers are started: by a listening socket that the director made, so no port is ever guessed or waited for."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette


class Arguments(argparse.Namespace):
    """What the director tells a server. Each reads what it needs."""

    fd: int
    ledger: Path
    seed: int


def arguments() -> Arguments:
    """Those of this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True, help="an inherited listening socket")
    parser.add_argument("--ledger", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(namespace=Arguments())


def listening(fd: int) -> socket.socket:
    """The socket behind an inherited descriptor."""
    return socket.socket(fileno=fd)


def serve(app: Starlette, fd: int) -> None:
    """Serves until the process is told to end. Silent: connections are dropped on purpose here, and that is no error."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening(fd)])
