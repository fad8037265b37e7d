"""What `make docs` adds to MkDocs: MathML, the reference's pages, links into the source as plain names.

Equations are written as GitHub reads them (a `math` block, or a dollar sign and a backtick), and become MathML, which browsers show
without a script.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Folder -> the package's name for an importer.
PACKAGES = {
    "robot_rl": "robot_rl",
    **{
        f"robot_rl/{name}": f"robot_rl.{name}"
        for name in (
            "algorithms", "checks", "data", "data/formats", "deploy", "fitting", "runs", "stages", "teleop", "workbench"
        )
    },
    **{name: f"robot_rl.{name}" for name in ("envs", "policies", "hardware")},
}  # fmt: skip
_MATH = re.compile(r"^```math\n(?P<block>.*?)\n```$|\$`(?P<line>[^`]+)`\$", re.DOTALL | re.MULTILINE)
_OUTSIDE = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\(\.\./(?!\.)(?P<path>[^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Put tutorials, pages that the navigation does not name, and the reference where they belong."""
    docs = ROOT / "docs"
    tutorials = sorted(path.relative_to(docs).as_posix() for path in (docs / "tutorials").glob("*.md"))
    if tutorials:
        config.nav.insert(1, {"Tutorials": tutorials})
    named = set(_pages(config.nav))
    others = sorted(path.name for path in docs.glob("*.md") if path.name not in named)
    reference = [{package: f"reference/{package.removeprefix('robot_rl.')}.md"} for package in PACKAGES.values()]
    config.nav[-3:-3] = [*([{"More": others}] if others else []), {"Reference": reference}]
    return config


def _pages(nav: Any) -> Iterator[str]:
    """Every page in a part of the navigation."""
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages(part)


def on_files(files: Any, config: Any) -> Any:
    """Add one page for every package and one for its modules' docstrings."""
    for name, text in reference_pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put MathML for equations, and plain names for links to files that are no pages."""
    if page.file.src_uri.startswith("reference/"):
        return markdown
    depth = page.file.src_uri.count("/")
    outside = re.compile(_OUTSIDE.pattern.replace(r"\.\./", r"\.\./" * (depth + 1), 1))
    return _MATH.sub(_as_mathml, outside.sub(_as_name, markdown))


def reference_pages() -> dict[str, str]:
    """Page name -> Markdown, from the source alone: nothing is imported, so no simulator or driver is needed."""
    pages = {}
    for folder, package in PACKAGES.items():
        names = sorted(
            p.stem for p in (ROOT / folder).glob("*.py") if p.stem != "__init__" and not p.stem.startswith("_")
        )
        lines = [f"# {package}", ""]
        for name in names:
            first = (
                ast.get_docstring(ast.parse((ROOT / folder / f"{name}.py").read_text(encoding="utf-8"))) or ""
            ).split("\n")[0]
            lines.append(f"- `{name}`: {first}".rstrip(": "))
        lines.append("")
        lines += [f"::: {folder.replace('/', '.')}.{name}" for name in names]
        pages[package.removeprefix("robot_rl.")] = "\n\n".join(lines) + "\n"
    return pages


def _as_mathml(match: re.Match[str]) -> str:
    block = match["block"]
    if block is None:
        return str(convert(match["line"]))
    return f"\n<div>{convert(' '.join(block.split()), display='block')}</div>\n"


def _as_name(match: re.Match[str]) -> str:
    return match["text"] if "`" in match["text"] else f"`{match['text']}`"
