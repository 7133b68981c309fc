"""The codes of the shop as they follow each other, and the commands that a deploy needs, given as an operator gives them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from groundstate.testing.torture.fleet import Code
from groundstate.testing.torture.judge import Judge

GIVES_UP_AFTER = 8
IN_TROUBLE = 4  # the command line's own exit code: the database cannot be used just now
MAY_LIVE = "a worker of the app runs"  # said for some seconds after a start of the server, also of workers that were killed
DIFFERS = 1  # `groundstate plan`: something is to be done before this code is deployed
APP = "groundstate.testing.torture.shop:app"
LOOKS_S = 0.1
ENDS_WITHIN_S = 300.0
# What each variant declares in another way.
REDECLARED = {"service": ("insured", "mailed"), "occurrence": ("labelled", "stickered"), "wider": ()}


class Deploys:
    """Versions 1, then 2, and from then on 3 and 2 in turn; each in a variant, or none.

    environment: where the database is. meanwhile: called again and again while a command runs: it may wait for a worker that stands still,
    or for room on the disk.
    """

    def __init__(self, environment: Mapping[str, str], judge: Judge) -> None:
        self.code = Code()
        self.meanwhile: Callable[[], None] = lambda: None
        self._environment, self._judge = dict(environment), judge

    def begin(self) -> None:
        """The first version's tables. Raises RuntimeError where they cannot be made."""
        status, said = self._command("init", "--tables", "--accept", "all")
        if status != 0:
            raise RuntimeError(f"`groundstate init` ended with {status}: {said}")

    def next_is_a_rename(self) -> bool:
        """Whether all workers must have ended before the next version can start."""
        return self.code.version != 1

    def roll(self) -> None:
        """To version 2: a reaction more, which is accepted on the orders that are there; workers of both versions go on."""
        self.code = replace(self.code, version=2)
        self._surely("init", "--accept", "surveyed")

    def rename(self) -> None:
        """Between 2 and 3: one reaction has another name. All workers have ended."""
        self.code = replace(self.code, version=5 - self.code.version)
        self._surely("rename", *(("labelled", "stickered") if self.code.version == 3 else ("stickered", "labelled")))

    def turn(self, variant: str) -> None:
        """To this variant, or, where it is the present one, to the plain code; workers of both go on."""
        self.code = replace(self.code, variant="" if self.code.variant == variant else variant)

    def plan(self) -> int:
        """`groundstate plan`: the exit status of what it says of the present code, with what is open just now."""
        return self._command("plan")[0]

    def leave_what_is_there(self, reaction: str) -> None:
        """A person says that the rows which match already are to be left as they are."""
        self._surely("init", "--baseline", reaction)

    def trust(self) -> bool:
        """A person says that the lost time is dealt with. Returns whether it could be said."""
        return self._command("trust")[0] == 0

    def _surely(self, *words: str) -> None:
        tries = GIVES_UP_AFTER
        status, said = self._command(*words)
        while (status == IN_TROUBLE or MAY_LIVE in said) and (tries := tries - 1):
            self.meanwhile()
            time.sleep(1.0)
            status, said = self._command(*words)
        if status != 0:
            self._judge.fault("Deploy", f"`groundstate {' '.join(words)}` ended with {status}: {said}")

    def _command(self, *words: str) -> tuple[int, str]:
        environment = self._environment | self.code.environment | {"GROUNDSTATE_APP": APP}
        command = [sys.executable, "-m", "groundstate.cli.main", *words]
        end = time.monotonic() + ENDS_WITHIN_S
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            while True:
                try:
                    said, _ = process.communicate(timeout=LOOKS_S)
                except subprocess.TimeoutExpired:
                    self.meanwhile()
                    if time.monotonic() > end:
                        process.kill()
                        raise
                else:
                    return process.returncode, said.strip()[-500:]
