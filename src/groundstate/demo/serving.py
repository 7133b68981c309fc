"""Runs the demo's servers on listening sockets that the director (their parent process) has created, so that each port is known and open
from the start.
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette


class Arguments(argparse.Namespace):
    """The command-line arguments of a server; each server uses only some of them."""

    fd: int
    ledger: Path
    seed: int


def parse_arguments() -> Arguments:
    """Parse the command-line arguments of this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True, help="an inherited listening socket")
    parser.add_argument("--ledger", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(namespace=Arguments())


def socket_of_descriptor(fd: int) -> socket.socket:
    """Return a socket object for this inherited file descriptor."""
    return socket.socket(fileno=fd)


def serve(app: Starlette, fd: int) -> None:
    """Serve this app on the socket with this file descriptor, until the process gets a signal to end. Nothing is logged, since the demo
    drops connections on purpose.
    """
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[socket_of_descriptor(fd)])
