"""What a release refuses, and what it writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import release

PYPROJECT = 'name = "groundstate"\nversion = "0.1.0"\n'


def a_clone(folder: Path) -> Path:
    for words in (
        ["init", "-q", "-b", "main"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def test_an_unclean_tree_is_not_released(tmp_path: Path) -> None:
    clone = a_clone(tmp_path)
    release.refuse_unclean_tree(clone)
    (clone / "new").touch()
    with pytest.raises(release.ReleaseRefusedError, match=r"not clean.*\n\?\? new"):
        release.refuse_unclean_tree(clone)


def test_another_branch_is_not_released(tmp_path: Path) -> None:
    clone = a_clone(tmp_path)
    subprocess.run(["git", "-C", str(clone), "switch", "-q", "-c", "idea"], check=True)
    with pytest.raises(release.ReleaseRefusedError, match="the branch idea"):
        release.refuse_unclean_tree(clone)


def test_the_version_is_written_where_it_is_no_earlier_one() -> None:
    assert release.with_version(PYPROJECT, "0.1.0") == PYPROJECT
    assert 'version = "0.10.0"' in release.with_version(PYPROJECT, "0.10.0")
    for wrong, why in {"0.0.9": "earlier", "1.0": "no version", "v1.0.0": "no version"}.items():
        with pytest.raises(release.ReleaseRefusedError, match=why):
            release.with_version(PYPROJECT, wrong)


def test_the_changes_are_dated() -> None:
    dated = release.with_dated_section("# Changes\n\n## Unreleased\n\n- one\n", "0.2.0")
    assert dated.startswith("# Changes\n\n## 0.2.0 - 20")
    assert "## Unreleased" not in dated
    with pytest.raises(release.ReleaseRefusedError, match="needs one section"):
        release.with_dated_section("# Changes\n", "0.2.0")


def test_this_projects_own_files_can_be_released() -> None:
    release.with_version((release.ROOT / "pyproject.toml").read_text(), "9.0.0")
    release.with_dated_section((release.ROOT / "CHANGELOG.md").read_text(), "9.0.0")
