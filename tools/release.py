"""Carries out the steps of a release up to the tag and the upload, which a person does: `python -m tools.release VERSION`.

It must run in a clean clone on the branch main. It sets the version in pyproject.toml, writes the version and today's date above the
unreleased changes in CHANGELOG.md, runs `./gs check`, builds the wheel, and imports the wheel in a fresh environment. Nothing is committed
or uploaded.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNRELEASED = "## Unreleased"


class ReleaseRefusedError(Exception):
    """A step of the release cannot be done; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all steps. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("version", help="the new version, such as 0.2.0")
    version = parser.parse_args(arguments).version
    try:
        refuse_unclean_tree(ROOT)
        for file, change in (("pyproject.toml", with_version), ("CHANGELOG.md", with_dated_section)):
            path = ROOT / file
            path.write_text(change(path.read_text(), version))
        run("./gs", "check")
        wheel = build_wheel()
        import_wheel(wheel, version)
    except ReleaseRefusedError as refused:
        print(f"release: {refused}", file=sys.stderr)
        return 1
    print(f"{wheel.name} is built, and can be imported. What is left is yours:\n  git commit -am 'Release {version}' && git tag v{version}")
    print(f"  git push && git push origin v{version} && python -m twine upload dist/*")
    return 0


def refuse_unclean_tree(root: Path) -> None:
    """Check that no file is changed or untracked, and that the branch is main. Raises ReleaseRefusedError."""
    changed = output_of("git", "-C", str(root), "status", "--porcelain")
    if changed:
        raise ReleaseRefusedError(f"the tree is not clean, commit or remove these first:\n{changed}")
    branch = output_of("git", "-C", str(root), "rev-parse", "--abbrev-ref", "HEAD")
    if branch != "main":
        raise ReleaseRefusedError(f"this is the branch {branch}: releases are made from main")


def with_version(pyproject: str, version: str) -> str:
    """Return pyproject.toml with the new version. Raises ReleaseRefusedError if the version is invalid or earlier than the current one."""
    if re.fullmatch(r"\d+\.\d+\.\d+", version) is None:
        raise ReleaseRefusedError(f"{version!r} is no version: give three numbers, such as 0.2.0")
    found = re.search(r'(?m)^version = "(\d+\.\d+\.\d+)"$', pyproject)
    if found is None:
        raise ReleaseRefusedError("pyproject.toml has no line `version = ...`")
    if _version_numbers(version) < _version_numbers(found[1]):
        raise ReleaseRefusedError(f"{version} is earlier than {found[1]}, which pyproject.toml has")
    return pyproject.replace(found[0], f'version = "{version}"')


def with_dated_section(changelog: str, version: str) -> str:
    """Return CHANGELOG.md with the heading of its unreleased changes replaced by this version and today's date."""
    if changelog.count(f"{UNRELEASED}\n") != 1:
        raise ReleaseRefusedError(f"CHANGELOG.md needs one section `{UNRELEASED}`")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return changelog.replace(f"{UNRELEASED}\n", f"## {version} - {today}\n")


def build_wheel() -> Path:
    """Build the wheel into dist/, and return its path."""
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", "dist", ".")
    return max((ROOT / "dist").glob("groundstate-*.whl"), key=lambda path: path.stat().st_mtime)


def import_wheel(wheel: Path, version: str) -> None:
    """Install the wheel into a new environment, and check the version that `groundstate --version` prints there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        run(python, "-m", "pip", "install", "--quiet", str(wheel))
        said = output_of(python, "-m", "groundstate", "--version")
        if said != f"groundstate {version}":
            raise ReleaseRefusedError(f"the installed wheel has the version {said!r} instead of groundstate {version}")


def run(*command: str) -> None:
    """Run a command in the clone. Raises ReleaseRefusedError if it fails. The command prints to the terminal."""
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise ReleaseRefusedError(f"`{' '.join(command)}` failed; its output is above")


def output_of(*command: str) -> str:
    """Return the output of a command without the last line break. Raises ReleaseRefusedError if the command fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise ReleaseRefusedError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


if __name__ == "__main__":
    sys.exit(main())
