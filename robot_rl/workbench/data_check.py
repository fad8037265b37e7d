"""`robot-rl data check PATH`: what is wrong with a dataset, where, and what to do; exit code 0: training may start.

Foreign data is checked as it would be imported: `--format FORMAT` and the other words of `robot-rl data import`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from robot_rl.data.episode_stream import read_episodes, stored_episodes
from robot_rl.data.quality import CHECKS, Limits, Severity, collapsed, finding_text, known_checks, may_train
from robot_rl.data.quality_audit import Audit, Quality
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError, closest
from robot_rl.runs.progress import Progress
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode

Episodes = Iterator[tuple[int, Episode | DataError]]


def main(words: Sequence[str]) -> int:
    """Run it; returns 0 when no finding is an error, otherwise 1.

    Args:
        words: "check" and what stands behind it.
    """
    options, rest = _parser().parse_known_args(list(words[1:]))
    if rest and options.format is None:
        raise ConfigError(
            "robot-rl data check", expected="a path and options", got=" ".join(rest),
            hint="Options of an import are for foreign data: give --format too.",
        )  # fmt: skip
    limits, ignored = _limits(options), known_checks(filter(None, options.ignore.split(",")), where="--ignore")
    spec, total, episodes, close = _source(options, rest)
    began = time.monotonic()
    try:
        quality = audit(spec, episodes, limits=limits, total=total)
    finally:
        close()
    seconds = max(time.monotonic() - began, 1e-9)
    found = tuple(finding for finding in quality.findings if finding.check not in ignored)
    quality = Quality(found, quality.facts, may_train(found))
    speed = {
        "seconds": round(seconds, 3),
        "episodes_per_s": round(quality.facts["episodes"] / seconds, 1),
        "windows_per_s": round(quality.facts["windows"] / seconds, 1),
    }
    if options.json:
        print(json.dumps({"path": str(options.path), **quality.to_json(), "ignored": sorted(ignored), "speed": speed}))
    else:
        print(_text(quality, str(options.path), speed, show_all=options.all))
    return 0 if quality.may_train else 1


def audit(spec: EnvSpec, episodes: Episodes, *, limits: Limits, total: int) -> Quality:
    """All checks over a stream of episodes, with a bar.

    Args:
        spec: of the dataset.
        episodes: (number, episode or what was wrong with it).
        limits: see Limits.
        total: number of episodes, for the bar.
    """
    checks = Audit(spec, limits)
    with Progress("check", total=total) as progress:
        for number, episode in episodes:
            if isinstance(episode, DataError):
                checks.damaged(number, episode)
            else:
                checks.add(number, episode)
            progress.advance(1)
    return checks.result()


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(field.name for field in fields(Limits))
    parser = argparse.ArgumentParser(
        prog="robot-rl data check", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="checks:\n" + "\n".join(f"  {name:<22} {text}" for name, text in CHECKS.items()),
    )  # fmt: skip
    parser.add_argument("path", type=Path, help="a store, or with --format a foreign dataset")
    parser.add_argument("--format", help="of foreign data, as for `robot-rl data import` (give its --spec too)")
    for name, short in (("history", "To"), ("horizon", "Tp"), ("execute", "Ta")):
        text = f"{short} of the policy, steps (default {getattr(Limits(), name)})"
        parser.add_argument(f"--{name}", type=int, default=getattr(Limits(), name), help=text)
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=f"another limit: {names}")
    parser.add_argument("--ignore", default="", metavar="CHECKS", help="checks to leave out, separated by commas")
    parser.add_argument("--all", action="store_true", help="print every finding, not one for all that are alike")
    parser.add_argument("--json", action="store_true", help="print JSON: every finding, facts, limits, speed")
    return parser


def _limits(options: argparse.Namespace) -> Limits:
    given: dict[str, Any] = {name: getattr(options, name) for name in ("history", "horizon", "execute")}
    kinds = {field.name: type(getattr(Limits(), field.name)) for field in fields(Limits)}
    for text in options.limit:
        name, _, value = text.partition("=")
        if name not in kinds:
            raise ConfigError("--limit", expected="NAME=VALUE", got=repr(text), hint=closest(name, kinds))
        try:
            given[name] = kinds[name](value)
        except ValueError:
            raise ConfigError(
                f"--limit {name}", expected=f"a number ({kinds[name].__name__})", got=repr(value), hint="Correct it."
            ) from None
    if given["history"] < 1 or not 1 <= given["execute"] <= given["horizon"]:
        raise ConfigError(
            "--history, --horizon, --execute", expected="history >= 1 and 1 <= execute <= horizon",
            got=f"{given['history']}, {given['horizon']}, {given['execute']}", hint="Give the sizes of the policy.",
        )  # fmt: skip
    return replace(Limits(), **given)


def _source(options: argparse.Namespace, rest: Sequence[str]) -> tuple[EnvSpec, int, Episodes, Callable[[], None]]:
    """Spec, number of episodes, the episodes, and how to close it."""
    if options.format is None:
        store = EpisodeStore.open(options.path, mode="r")
        return store.spec, len(store), stored_episodes(store), store.close
    from robot_rl.workbench import data_import

    imported = data_import.parser().parse_args([str(options.path), "unused", "--format", options.format, *rest])
    reader = data_import.reader_of(imported)
    return reader.spec, len(reader.names), read_episodes(reader), reader.close


def _text(quality: Quality, path: str, speed: dict[str, float], *, show_all: bool) -> str:
    shown = quality.findings if show_all else collapsed(quality.findings)
    lines = [finding_text(finding, path) for finding in shown]
    facts = quality.facts
    hz = facts["achieved_hz"]
    rate = f"{hz[0]:g} / {hz[1]:g} / {hz[2]:g} (least, median, most)" if hz else "unknown"
    lag = ", ".join(f"{one['action']} {one['steps']} ({one['ms']:.0f} ms)" for one in facts["lag"]) or "unknown"
    limits = facts["limits"]
    sizes = f"To={limits['history']}, Tp={limits['horizon']}, Ta={limits['execute']}"
    counts = Counter(finding.severity for finding in quality.findings)
    said = ", ".join(f"{counts[severity]} {severity.value}s" for severity in Severity)
    counted = (
        f"{facts['episodes']} episodes of {facts['lengths'][0]} to {facts['lengths'][1]} steps, {facts['steps']} in all"
    )
    elsewhere = f"{facts['windows_diffusion_policy']} in diffusion_policy ({facts['episodes_without_window']} episodes with none)"
    speeds = f"{speed['episodes_per_s']:g} episodes/s, {speed['windows_per_s']:g} windows/s"
    lines += [
        f"{counted}; {facts['successes']} with success, {facts['damaged']} can't be read",
        f"rate: declared {facts['declared_hz']:g} Hz, achieved {rate}",
        f"windows ({sizes}): {facts['windows']} here, {elsewhere}",
        f"steps from action to motion: {lag}",
        f"checked in {speed['seconds']:.1f} s, {speeds}",
        f"{said}: training {'may start' if quality.may_train else 'may not start'}",
    ]
    return "\n".join(lines)
