"""The versions and variants of the shop's code in the order of deployment, and the commands of a deploy, run as an operator runs them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from tools.torture.fleet import Code
from tools.torture.judge import Judge

GIVES_UP_AFTER = 8  # tries of a command
IN_TROUBLE = 4  # the command's exit code where the database cannot be used at the moment
MAY_LIVE = "a worker of the app runs"  # the command's message for some seconds after a start of the server, even if the workers were killed
DIFFERS = 1  # exit code of `groundstate plan` where an action is needed before this code is deployed
APP = "tools.torture.shop:app"
LOOKS_S = 0.1  # seconds between two calls of `meanwhile`
ENDS_WITHIN_S = 300.0  # seconds after which a command is killed
# The reactions that each variant declares differently.
REDECLARED = {"service": ("insured", "mailed"), "occurrence": ("labelled", "stickered"), "wider": ()}


class Deploys:
    """Deploys version 1, then 2, and from then on 3 and 2 in turn; each as plain code or in a variant.

    environment: the variables that lead to the database.
    meanwhile: called repeatedly while a command runs, which may wait for a suspended worker or for room on the disk.
    """

    def __init__(self, environment: Mapping[str, str], judge: Judge) -> None:
        self.code = Code()
        self.meanwhile: Callable[[], None] = lambda: None
        self._environment, self._judge = dict(environment), judge

    def create_tables(self) -> None:
        """Create the tables for the first version. Raises RuntimeError where that fails."""
        status, said = self._run_command("init", "--tables", "--accept", "all")
        if status != 0:
            raise RuntimeError(f"`groundstate init` ended with {status}: {said}")

    def is_next_a_rename(self) -> bool:
        """Return whether the next version renames a reaction, so that all workers must end before it starts."""
        return self.code.version != 1

    def deploy_version_2(self) -> None:
        """Deploy version 2, which adds a reaction that is accepted on existing orders; workers of both versions run side by side."""
        self.code = replace(self.code, version=2)
        self._run_or_raise("init", "--accept", "surveyed")

    def rename_reaction(self) -> None:
        """Switch between versions 2 and 3, in which one reaction has another name; all workers must have ended."""
        self.code = replace(self.code, version=5 - self.code.version)
        self._run_or_raise("rename", *(("labelled", "stickered") if self.code.version == 3 else ("stickered", "labelled")))

    def switch_variant(self, variant: str) -> None:
        """Deploy this variant, or the plain code if it is the current variant; workers of both codes run side by side."""
        self.code = replace(self.code, variant="" if self.code.variant == variant else variant)

    def run_plan(self) -> int:
        """Run `groundstate plan` for the current code and the calls that are open now; return its exit status."""
        return self._run_command("plan")[0]

    def set_baseline(self, reaction: str) -> None:
        """Run `groundstate init --baseline`: a person declares that rows which match the reaction already are left as they are."""
        self._run_or_raise("init", "--baseline", reaction)

    def run_trust(self) -> bool:
        """Run `groundstate trust`: a person declares that the lost time is dealt with. Return whether it succeeded."""
        return self._run_command("trust")[0] == 0

    def _run_or_raise(self, *words: str) -> None:
        tries = GIVES_UP_AFTER
        status, said = self._run_command(*words)
        while (status == IN_TROUBLE or MAY_LIVE in said) and (tries := tries - 1):
            self.meanwhile()
            time.sleep(1.0)
            status, said = self._run_command(*words)
        if status != 0:
            self._judge.add_fault("Deploy", f"`groundstate {' '.join(words)}` ended with {status}: {said}")

    def _run_command(self, *words: str) -> tuple[int, str]:
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
