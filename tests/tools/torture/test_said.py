"""The torture run sorts lines of the log by their words, so these have to be those that the engine writes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import groundstate
from tools.torture import said

MESSAGES = [*said.EXPLAINED, said.DELETED_BY_HAND, said.EARLIER_CALL, *(words for some in said.EXPLAINED_BY.values() for words in some)]


def _texts_in_source() -> Iterator[str]:
    """Yield each text in the source of groundstate, with {} for what is filled in."""
    for file in Path(str(groundstate.__file__)).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(_texts_in_source())


@pytest.mark.parametrize("words", MESSAGES)
def test_the_words_by_which_a_line_of_the_log_is_sorted_stand_in_the_code_that_logs_it(words: str, texts: list[str]) -> None:
    assert [text for text in texts if words in text] != []
