"""The tutorials (docs/tutorials/*.md), run as a reader runs them: every block of bash, in one folder, page behind page.

A block ```bash is run; the block ```text behind it is what it prints (standard output), line for line: `<n>` stands for any text,
a line `...` for any number of lines.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks_in
from own_process import run_session

for name in ("torch", "onnxruntime", "websockets", "pyarrow"):
    pytest.importorskip(name)

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
SECONDS = 400


def steps(page: str) -> list[tuple[str, str | None]]:
    """(commands, what they print or None) of a page."""
    out: list[tuple[str, str | None]] = []
    for block in blocks_in(page, page="tutorial"):
        if block.language == "bash":
            out.append((f"{block.text}\n", None))
        elif block.language == "text":
            assert out, "a text block without commands before it"
            assert out[-1][1] is None, "two text blocks behind one bash block"
            out[-1] = (out[-1][0], f"{block.text}\n")
    return out


def pattern(shown: str) -> re.Pattern[str]:
    lines = []
    for line in shown.splitlines():
        exact = ".*".join(re.escape(part) for part in line.split("<n>"))
        lines.append(r"(?:.*\n)*?" if line == "..." else exact + r"\n")
    return re.compile("".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorials")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page(page: Path, folder: Path) -> None:
    """All blocks of a page in one shell, so that a job of one block can be ended by another."""
    blocks = steps(page.read_text(encoding="utf-8"))
    assert blocks
    script = "set -euo pipefail\n" + "".join(f"{commands}\necho '%%% {i}'\n" for i, (commands, _) in enumerate(blocks))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    code, out, err = run_session(["bash", "-c", script], cwd=folder, env=environment, seconds=SECONDS)
    assert code == 0, f"{page.name}\n{out[-3000:]}\n{err[-3000:]}"
    printed = re.split(r"^%%% \d+\n", out, flags=re.MULTILINE)
    for (commands, shown), text in zip(blocks, printed, strict=False):
        if shown is not None:
            assert pattern(shown).fullmatch(text), (
                f"{page.name}:\n{commands}\nprinted:\n{text}\nthe page says:\n{shown}"
            )


def test_what_a_page_says_can_be_wrong() -> None:
    assert pattern("a\n...\nb <n> c\n").fullmatch("a\nx\ny\nb 12 c\n")
    assert pattern("a\n...\nb <n> c\n").fullmatch("a\nb 12 c\n")
    assert not pattern("a\nb\n").fullmatch("a\nx\nb\n")
    assert not pattern("k: <n>\n").fullmatch("l: 3\n")
    assert not pattern("a\n").fullmatch("a\nb\n")
    assert steps("```bash\na\n```\n\n```text\nb\n```\n\n```bash\nc\n```\n") == [("a\n", "b\n"), ("c\n", None)]
