"""Repair of a damaged store: what verifies goes into a new store, the damaged one goes to the trash as it is.

By default only the episodes before the first that does not verify are kept (an honest prefix of what was recorded);
all that verify, when the user says so. A store in which nothing is wrong is left alone, so repairing twice is the same
as once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from robot_rl.data.damage import Survey, survey
from robot_rl.data.journal import WriterLock
from robot_rl.data.rewriting import EditReport, Plan, carry_out, with_history
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import size_on_disk
from robot_rl.errors import DataError

Keep = Literal["prefix", "all"]


def plan_repair(found: Survey, *, keep: Keep = "prefix", target: Path | None = None) -> Plan:
    """A store of the episodes that verify.

    Args:
        found: what `survey` says.
        keep: those before the first that does not verify, or all.
        target: a new store; None replaces the damaged one.

    Raises:
        DataError: when no episode would be kept.
    """
    good = sorted(index for index in found.good if keep == "all" or index < found.prefix)
    if not good:
        first = min(found.lost, default=0)
        raise DataError(
            f"{found.path}",
            expected="at least one episode that verifies" if keep == "all" else "a first episode that verifies",
            got=f"episode {first}: {found.lost.get(first, 'no episodes at all')}",
            hint=f"Nothing was changed. `--keep all` keeps the {len(found.good)} that verify."
            if found.good
            else "Nothing was changed.",
        )
    gone = {str(index): reason for index, reason in found.lost.items()}
    arguments = {"keep": keep, "lost": gone, "problems": list(found.problems), "kept": good}
    source = {"store": found.path.name, "episodes": found.declared, "content_hash": None}
    size = size_on_disk(found.path) * len(good) // max(1, found.declared)
    return Plan(
        target=found.path if target is None else target,
        spec=found.spec,
        metadata=with_history(found.metadata, "repair", arguments=arguments, sources=[source]),
        pieces=[found.good[index] for index in good],
        replaces=target is None,
        images=found.images,
        bytes_needed=size,
    )


def repair(
    path: Path,
    *,
    keep: Keep = "prefix",
    target: Path | None = None,
    like: Path | None = None,
    dry_run: bool = False,
    on_episode: Callable[[int, int], None] | None = None,
) -> tuple[Survey, EditReport | None]:
    """Survey a store and repair it; returns what was found, and what was written (None: nothing was to be done).

    An append that was only cut off, in a store without damage, is finished in place, as the next writer would do.

    Args:
        path: of the store.
        keep, target: as in `plan_repair`.
        like: another store whose spec stands in for a lost `.zattrs`.
        dry_run: write nothing.
        on_episode: called with (episodes surveyed, episodes in all).

    Raises:
        DataError: no store, a writer has it open, nothing to keep, or no room; nothing has changed then.
    """
    with ExitStack() as stack:
        # Without .zgroup no writer can have it open.
        if not dry_run and target is None and (path / ".zgroup").is_file():
            stack.callback(WriterLock(path).release)
        found = survey(path, like=like, on_episode=on_episode)
        if not found.is_whole:
            plan = plan_repair(found, keep=keep, target=target)
            return found, carry_out([plan], dry_run=dry_run)[0]
    if found.pending and not dry_run and target is None:
        EpisodeStore.open(path, mode="a").close()
    return found, None
