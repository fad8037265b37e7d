"""`robot-rl data verify|repair STORE`: read a store against its checksums; keep what verifies.

`verify` only reads and says what is damaged, by name. `repair` writes what verifies to a new store: the episodes before
the first damaged one, or with `--keep all` every one that verifies. The damaged store goes to `.trash` beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robot_rl.data.damage import Survey, survey
from robot_rl.data.repairing import repair
from robot_rl.runs.progress import Progress
from robot_rl.workbench.data_edit import report_text

_LISTED = 20


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code: 1 when `verify` finds damage.

    Args:
        words: "verify" or "repair" and what stands behind it.
    """
    parser = argparse.ArgumentParser(prog=f"robot-rl data {words[0]}", description=__doc__, allow_abbrev=False)
    parser.add_argument("store", type=Path)
    parser.add_argument("--like", type=Path, help="a store of the same spec, in place of a lost .zattrs")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    if words[0] == "repair":
        parser.add_argument("--keep", choices=("prefix", "all"), default="prefix")
        parser.add_argument("--target", type=Path, help="write the repaired store here, leave the damaged one")
        parser.add_argument("--dry-run", action="store_true", help="say what would be kept and why the rest is lost")
    options = parser.parse_args(list(words[1:]))
    with Progress(words[0], total=0) as progress:

        def on_episode(done: int, total: int) -> None:
            progress.total = total
            progress.advance(1)

        if words[0] == "verify":
            found = survey(options.store, like=options.like, on_episode=on_episode)
            print(json.dumps(_facts(found)) if options.json else _text(found))
            return 0 if found.is_whole else 1
        found, report = repair(
            options.store, keep=options.keep, target=options.target, like=options.like, dry_run=options.dry_run,
            on_episode=on_episode,
        )  # fmt: skip
    if options.json:
        print(json.dumps({**_facts(found), "repaired": None if report is None else asdict(report)}))
    else:
        print(_text(found) if report is None else f"{_text(found)}\n{report_text(report)}")
    return 0


def _facts(found: Survey) -> dict[str, Any]:
    return {
        "store": str(found.path),
        "is_whole": found.is_whole,
        "episodes": found.declared,
        "verified": len(found.good),
        "verified_prefix": found.prefix,
        "pending": found.pending,
        "lost": {str(index): reason for index, reason in found.lost.items()},
        "problems": list(found.problems),
    }


def _text(found: Survey) -> str:
    if found.is_whole:
        rest = f"; {found.pending} of them wait in the journal for the next writer" if found.pending else ""
        return f"{found.path}: all {found.declared} episodes verify{rest}, nothing to repair"
    lines = [
        f"{found.path}: {len(found.good)} of {found.declared} episodes verify, {found.prefix} before the first damaged one"
    ]
    lines += [f"  damaged: {problem}" for problem in _shortened(found.problems)]
    lines += [f"  lost: episode {index}: {reason}" for index, reason in list(found.lost.items())[:_LISTED]]
    if len(found.lost) > _LISTED:
        lines.append(f"  lost: {len(found.lost) - _LISTED} more (--json lists all)")
    return "\n".join(lines)


def _shortened(problems: Sequence[str]) -> list[str]:
    rest = len(problems) - _LISTED
    return [*problems[:_LISTED], *([f"{rest} more (--json lists all)"] if rest > 0 else [])]
