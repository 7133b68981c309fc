"""The pages, and the blocks of code in them. Reads Markdown; runs nothing."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = {"console", "bash", "sh", "shell"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the marks that follow it, the line of its first line of code, and the code."""

    language: str
    marks: tuple[str, ...]
    line: int
    code: str

    @property
    def file(self) -> str | None:
        """The file that it is a part of: ```python file=shop.py."""
        return next((mark.removeprefix("file=") for mark in self.marks if mark.startswith("file=")), None)


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        if token.type == "fence" and token.map is not None:
            words = token.info.split() or [""]
            found.append(Block(words[0], tuple(words[1:]), token.map[0] + 2, token.content))
    return found


def links_of(page: Path) -> list[str]:
    """Where its links and images lead to."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        for child in token.children or ():
            target = child.attrGet("href") if child.type == "link_open" else child.attrGet("src") if child.type == "image" else None
            if target is not None:
                found.append(str(target))
    return found


def anchors_of(page: Path) -> set[str]:
    """The anchors that a renderer makes of its headings."""
    tokens = MarkdownIt("commonmark").parse(page.read_text())
    titles = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands_of(block: Block) -> list[str]:
    """The commands of a shell block: what follows `$ `, continued lines joined. Without any `$ `, each line is one."""
    lines = block.code.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return prompted or [line for line in lines if line.strip() and not line.lstrip().startswith("#") and block.language != "console"]
