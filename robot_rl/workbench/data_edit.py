"""`robot-rl data delete|merge|split|trim|relabel|reencode|restore`: edits of stores, copy-on-write.

An edit writes a new store, reads it back, compares it with its source, and only then takes the source's place; the
former version goes to `.trash` beside it, and `robot-rl data restore STORE` brings it back. With --target the source
stays where it is. Each edit is noted in the history of the store (`robot-rl data info`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from robot_rl.data import editing, relabelling, trimming
from robot_rl.data.dataset_card import parse_setting
from robot_rl.data.rewriting import EditReport, Plan, carry_out
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import restore, size_on_disk, trashed
from robot_rl.data.video_files import STORAGES
from robot_rl.errors import ConfigError
from robot_rl.runs.progress import Progress
from robot_rl.types import Source


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: the command ("delete", "merge", ...) and what stands behind it.
    """
    adders: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
        "delete": (_delete_words, _delete),
        "merge": (_merge_words, _merge),
        "split": (_split_words, _split),
        "trim": (_trim_words, _trim),
        "relabel": (_relabel_words, _relabel),
        "reencode": (_reencode_words, _reencode),
        "restore": (_restore_words, _restore),
    }
    add, run = adders[words[0]]
    parser = argparse.ArgumentParser(prog=f"robot-rl data {words[0]}", description=__doc__, allow_abbrev=False)
    add(parser)
    parser.add_argument("--dry-run", action="store_true", help="read and check everything, write nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return run(parser.parse_args(list(words[1:])))


def _one_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path)
    parser.add_argument("--target", type=Path, help="write a new store here and leave the source as it is")


def _some_episodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--episodes", nargs="+", metavar="N", help="only these: 3, or 5-7 (default: all)")


def _delete_words(parser: argparse.ArgumentParser) -> None:
    _one_store(parser)
    parser.add_argument("episodes", nargs="*", metavar="N", help="episode, or a range like 5-7")
    parser.add_argument("--failures", action="store_true", help="and all without success")


def _delete(options: argparse.Namespace) -> int:
    def plan(store: EpisodeStore) -> Plan:
        chosen = set(editing.episode_indices(options.episodes, len(store), where=str(store.path)))
        if options.failures:
            chosen |= {index for index, success in enumerate(store.success.tolist()) if not success}
        return editing.plan_delete(store, sorted(chosen), target=options.target)

    return _edit(options, plan)


def _merge_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", type=Path, nargs="+", metavar="store")
    parser.add_argument("--target", type=Path, required=True, help="the new store")
    parser.add_argument("--skip-duplicates", action="store_true", help="keep the first of each in place of refusing")


def _merge(options: argparse.Namespace) -> int:
    if len(options.stores) < 2:
        raise ConfigError(
            "robot-rl data merge", expected="two stores or more", got="one", hint="Name all stores, then --target."
        )
    with ExitStack() as stack:
        stores = [stack.enter_context(EpisodeStore.open(path)) for path in options.stores]
        plan = editing.plan_merge(stores, options.target, skip_duplicates=options.skip_duplicates)
        return _run(options, [plan])


def _split_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "--into", nargs="+", required=True, metavar="STORE=SHARE",
        help="a count (10), a fraction (0.8), rest, or success and failure",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="draw the episodes of each part at random (default: in order)")


def _split(options: argparse.Namespace) -> int:
    parts: dict[Path, str] = {}
    for word in options.into:
        path, equal, share = word.rpartition("=")
        if not equal or not path or Path(path) in parts:
            raise ConfigError(
                f"--into {word}", expected="STORE=SHARE, each store once", got=repr(word),
                hint="For example --into train.zarr=0.8 validation.zarr=rest.",
            )  # fmt: skip
        parts[Path(path)] = share
    with EpisodeStore.open(options.store) as store:
        return _run(options, editing.plan_split(store, parts, seed=options.seed))


def _trim_words(parser: argparse.ArgumentParser) -> None:
    _one_store(parser)
    _some_episodes(parser)
    parser.add_argument("--begin", type=int, default=0, help="steps to cut from the beginning")
    parser.add_argument("--end", type=int, default=0, help="steps to cut from the end")
    parser.add_argument(
        "--idle",
        type=float,
        metavar="X",
        help="cut first and last steps in which no element of --key moves by more than X",
    )
    parser.add_argument("--key", default="proprio", help="observation key that says whether something moves")
    parser.add_argument("--columns", metavar="START:STOP", help="elements of --key that count (default: all)")
    parser.add_argument(
        "--keep-ending", action="store_true",
        help="the last step left takes reward, success and ending of the last step cut off",
    )  # fmt: skip


def _trim(options: argparse.Namespace) -> int:
    columns = None
    if options.columns is not None:
        start, _, stop = options.columns.partition(":")
        if not (start.isdecimal() and stop.isdecimal()):
            raise ConfigError(
                "--columns", expected="START:STOP", got=options.columns, hint="For example --columns 0:7."
            )
        columns = (int(start), int(stop))
    trim = trimming.Trim(
        begin=options.begin, end=options.end, idle=options.idle, key=options.key, columns=columns,
        keep_ending=options.keep_ending,
    )  # fmt: skip
    return _edit(options, lambda store: trimming.plan_trim(store, _chosen(options, store), trim, target=options.target))


def _relabel_words(parser: argparse.ArgumentParser) -> None:
    _one_store(parser)
    _some_episodes(parser)
    texts = {name: "; ".join(f"{rule}: {text}" for rule, text in rules.items()) for name, rules in _RULES.items()}
    parser.add_argument("--success", choices=tuple(relabelling.SUCCESS_RULES), help=texts["success"])
    parser.add_argument("--reward", choices=tuple(relabelling.REWARD_RULES), help=texts["reward"])
    parser.add_argument("--source", choices=[source.name for source in Source], help="who chose the actions")
    parser.add_argument("--instruction", help="text of the task")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the card, as `robot-rl data card --set`",
    )


_RULES = {"success": relabelling.SUCCESS_TEXTS, "reward": relabelling.REWARD_TEXTS}


def _relabel(options: argparse.Namespace) -> int:
    labels = relabelling.Labels(
        success=options.success, reward=options.reward, source=options.source, instruction=options.instruction,
        card=dict(parse_setting(word) for word in options.set) or None,
    )  # fmt: skip
    return _edit(
        options, lambda store: relabelling.plan_relabel(store, _chosen(options, store), labels, target=options.target)
    )


def _reencode_words(parser: argparse.ArgumentParser) -> None:
    _one_store(parser)
    parser.add_argument(
        "--images", choices=STORAGES, help="how to keep cameras (default: as they are); video loses detail"
    )


def _reencode(options: argparse.Namespace) -> int:
    return _edit(options, lambda store: editing.plan_reencode(store, images=options.images, target=options.target))


def _restore_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path)
    parser.add_argument("--version", help="name of a folder in .trash (default: the newest)")
    parser.add_argument("--list", action="store_true", help="print the former versions and stop")


def _restore(options: argparse.Namespace) -> int:
    versions = [{"version": place.name, "bytes": size_on_disk(place)} for place in trashed(options.store)]
    if options.list or options.dry_run:
        lines = [f"{one['version']}: {one['bytes']} bytes" for one in versions] or ["no former version"]
        print(json.dumps(versions) if options.json else "\n".join(lines))
        return 0
    back, gone = restore(options.store, version=options.version)
    facts = {"store": str(options.store), "restored": back.name, "trash": None if gone is None else str(gone)}
    text = f"{options.store}: {back.name} is back" + ("" if gone is None else f"; what was there is now {gone}")
    print(json.dumps(facts) if options.json else text)
    return 0


def _chosen(options: argparse.Namespace, store: EpisodeStore) -> Sequence[int]:
    if options.episodes is None:
        return range(len(store))
    return editing.episode_indices(options.episodes, len(store), where=str(store.path))


def _edit(options: argparse.Namespace, plan: Callable[[EpisodeStore], Plan]) -> int:
    """One store, in its place (its lock is held until the new one is there) or into a target."""
    is_copy = options.dry_run or options.target is not None
    with EpisodeStore.open(options.store, mode="r" if is_copy else "a") as store:
        return _run(options, [plan(store)])


def _run(options: argparse.Namespace, plans: Sequence[Plan]) -> int:
    with Progress("edit", total=sum(len(plan.pieces) for plan in plans)) as progress:
        reports = carry_out(plans, dry_run=options.dry_run, on_episode=lambda done, total: progress.advance(1))
    if options.json:
        print(json.dumps([asdict(report) for report in reports]))
    else:
        print("\n".join(report_text(report) for report in reports))
    return 0


def report_text(report: EditReport) -> str:
    """What an edit did, for people."""
    verb = f"{report.target}:" if report.content_hash else f"Dry run, nothing was written. {report.target} would have:"
    lines = [f"{verb} {report.episodes} episodes, {report.steps} steps, {report.successes} with success"]
    lines += [f"  changed: {name} in {episodes} episodes" for name, episodes in sorted(report.changed.items())]
    lines += [f"  note: {note}" for note in report.notes]
    if report.trash is not None:
        size = size_on_disk(Path(report.trash))
        lines.append(f"  before: {report.trash} ({size} bytes); `robot-rl data restore {report.target}` brings it back")
    return "\n".join(lines)
