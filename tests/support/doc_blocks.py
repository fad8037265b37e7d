"""Code blocks of README.md and docs/: where they stand, what a comment before them says, and their command lines."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
# What a placeholder stands for, where any word will not do.
PLACEHOLDERS = {"choice": "annealed", "one of them": "x.zarr"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `where` is page:line, `why_not` the reason of a `<!-- not run: ... -->` on the line above it."""

    where: str
    language: str
    text: str
    why_not: str


def blocks() -> Iterator[Block]:
    """Every fenced block of every page."""
    for path in PAGES:
        yield from blocks_in(path.read_text(encoding="utf-8"), page=str(path.relative_to(ROOT)))


def blocks_in(content: str, *, page: str) -> Iterator[Block]:
    """Every fenced block of one page."""
    lines, start = content.split("\n"), None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        above = [text for text in lines[max(start - 2, 0) : start] if text.strip()]
        reason = NOT_RUN.search(above[-1]) if above else None
        text = textwrap.dedent("\n".join(lines[start + 1 : number]))
        language = lines[start].strip().removeprefix("```").strip()
        yield Block(f"{page}:{start + 1}", language, text, reason[1] if reason else "")
        start = None
    assert start is None, f"{page}: a block that is not closed"


def commands(text: str) -> list[str]:
    """Command lines of a block: continued lines joined, prompts, comments and assignments before them taken off."""
    found = []
    for line in re.sub(r"\\\n\s*", "", text).split("\n"):
        plain = re.sub(r"(^|\s)# .*$|\s#.*$", "", line.strip().removeprefix("$ "))
        plain = re.sub(r"^(\w+=(\S+|<[^>]*>) )+", "", plain).strip()
        if plain and not plain.startswith("#"):
            found.append(plain)
    return found


def words_of(line: str) -> list[str]:
    """Words of a command line as a shell would make them, with placeholders filled in and optional parts taken as given."""

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        return PLACEHOLDERS.get(name, name.split(" or ")[0] if re.fullmatch(r"\d or \d", name) else "some_run")

    line = re.sub(r"<([^<>|]+)>", filled, line)
    line = re.sub(r"\s\[([^\]]*)\]", lambda m: f" {m[1]}" if not m[1].startswith("more ") else "", line)
    return [re.sub(r"^([\w-]+)(\|[\w-]+)+$", r"\1", word) for word in shlex.split(line)]  # the first of a|b|c
