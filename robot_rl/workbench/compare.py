"""Compare two evaluation runs: `robot-rl compare A B` says whether B differs from A, and whether it is no worse.

The difference is always B - A. Both runs must have the same protocol; only the policy, its history and num_envs may
differ. Equal seeds make pairs: exact McNemar test, Tango's score interval, paired bootstrap. Other seeds: Barnard's
exact test, Newcombe's hybrid score interval, two-sample bootstrap. These assume that the number of episodes was fixed
beforehand. `--sequential` may be looked at while trials run, as often as you like: a betting test and bounds that hold
at all looks together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.algorithms.comparison import (
    Interval,
    barnard_p,
    bootstrap_interval,
    count_pairs,
    mcnemar_p,
    paired_interval,
    unpaired_interval,
)
from robot_rl.algorithms.sequential import sequential_bound, sequential_test
from robot_rl.algorithms.statistics import proportion
from robot_rl.errors import ConfigError, DataError
from robot_rl.rollout import EpisodeRecord
from robot_rl.workbench.compare_page import as_text, page, statements
from robot_rl.workbench.evaluations import Evaluation, check_protocols, read_evaluation

METRICS = ("success_once", "success_at_end")


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        metric: success_once or success_at_end.
        margin: of equivalence, as a difference of rates (0.05 is 5 points).
        confidence: of all statements.
        seed: of the bootstrap.
        sequential: anytime-valid test in place of the fixed-sample one.
        shared_seeds: use only the seeds that both runs played, as pairs.
    """

    metric: str = "success_once"
    margin: float = 0.05
    confidence: float = 0.95
    seed: int = 0
    sequential: bool = False
    shared_seeds: bool = False


def main(words: Sequence[str]) -> int:
    """Compare, print, and write the page when asked.

    Raises:
        ConfigError: an option out of range.
        RunError: a path that is no finished evaluation run.
        DataError: different protocols, damaged tables, or no episodes to compare.
    """
    asked = _parser().parse_args(list(words))
    if not 0 < asked.margin <= 100 or not 50 < asked.confidence < 100 or asked.seed < 0:
        raise ConfigError(
            "compare", expected="--margin above 0 and up to 100 points, --confidence between 50 and 100 %, --seed of 0 or more",
            got=f"{asked.margin}, {asked.confidence} and {asked.seed}", hint="E.g. --margin 5 --confidence 95 --seed 0.",
        )  # fmt: skip
    options = Options(
        metric=asked.metric, margin=asked.margin / 100, confidence=asked.confidence / 100, seed=asked.seed,
        sequential=asked.sequential, shared_seeds=asked.shared_seeds,
    )  # fmt: skip
    if Path(asked.a).resolve() == Path(asked.b).resolve():
        raise DataError("compare", expected="two different runs", got=f"{asked.a} twice", hint="Give another B.")
    a, b = (read_evaluation(Path(path), may_run=asked.sequential) for path in (asked.a, asked.b))
    remarks = check_protocols(a, b, allow=asked.allow)
    result = compare(a, b, options=options)
    result["notes"] += remarks
    if asked.html:
        _write_page(asked.html, page(result))
    print(json.dumps(result, indent=2) if asked.json else as_text(result, asked.html))
    return 0


def _write_page(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--html {path}", expected="a file that can be written", got=str(error), hint="Give another."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("a", metavar="A", help="evaluation run directory: the baseline")
    parser.add_argument("b", metavar="B", help="evaluation run directory: the candidate")
    parser.add_argument("--metric", choices=METRICS, default="success_once", help="which success (default %(default)s)")
    parser.add_argument("--margin", type=float, default=5.0, metavar="POINTS", help="of equivalence (default 5)")
    parser.add_argument("--confidence", type=float, default=95.0, metavar="PERCENT", help="default 95")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--sequential", action="store_true", help="valid while trials run and however often you look")
    parser.add_argument("--shared-seeds", action="store_true", help="only the seeds that both runs played, as pairs")
    parser.add_argument("--allow", action="append", default=[], metavar="KEY", help="protocol key that may differ")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs no other file")
    return parser


def compare(a: Evaluation, b: Evaluation, *, options: Options) -> dict[str, Any]:
    """Everything the page and the text show, as JSON types; differences are B - A, rates are 0..1.

    Raises:
        DataError: pairs are asked for and no seed is in both runs.
    """
    of_a, of_b = ({record.seed: record for record in run.records} for run in (a, b))
    shared = sorted(set(of_a) & set(of_b))
    paired = set(of_a) == set(of_b) or options.shared_seeds or (options.sequential and bool(shared))
    if options.shared_seeds and not shared:
        raise DataError(
            "--shared-seeds", expected="seeds that both runs played", got="none", hint="Leave the option out."
        )
    notes = _notes(of_a, of_b, shared=shared, paired=paired)
    rows_a, rows_b = list(a.records), list(b.records)
    if paired:
        rows_a, rows_b = [of_a[seed] for seed in shared], [of_b[seed] for seed in shared]
    elif options.sequential:
        number = min(len(rows_a), len(rows_b))
        rows_a, rows_b = rows_a[:number], rows_b[:number]
        notes.append(f"No seed is in both runs: the n-th episode of A is paired with the n-th of B, {number} pairs.")
    wins_a, wins_b = ([bool(getattr(row, options.metric)) for row in rows] for rows in (rows_a, rows_b))
    result: dict[str, Any] = {
        "a": _side(a, wins_a), "b": _side(b, wins_b), "options": asdict(options), "paired": paired, "notes": notes,
        "pairs": count_pairs(wins_a, wins_b) if paired else None,
        "seeds": {"a": _range(rows_a), "b": _range(rows_b)},
        "outcomes": list(zip([r.seed for r in rows_a], wins_a, wins_b, strict=True)) if paired else None,
    }  # fmt: skip
    result |= (
        _sequential(wins_a, wins_b, options=options)
        if options.sequential
        else _fixed(wins_a, wins_b, paired=paired, options=options)
    )
    sign = {"A better": -1, "B better": 1}.get(result["verdict"], 0)
    if sign * result["interval"]["difference"] < 0:
        notes.append(
            "The claim was allowed at an earlier look, but later pairs point the other way: the policies, the robot or "
            "the starts may have changed between trials. Find out before you use it."
        )
    if not options.sequential:
        limit = a.protocol.get("max_episode_steps")
        result["bootstrap"] = _bootstrap(rows_a, rows_b, paired=paired, options=options, limit=limit)
    return result | {"statements": statements(result)}


def _notes(
    of_a: Mapping[int, EpisodeRecord], of_b: Mapping[int, EpisodeRecord], *, shared: list[int], paired: bool
) -> list[str]:
    notes = []
    if shared and not paired:
        notes.append(
            f"{len(shared)} seeds are in both runs, but the lists are not equal: the test treats the runs as independent. "
            "--shared-seeds compares those seeds as pairs."
        )
    elif shared and len(shared) < max(len(of_a), len(of_b)):
        notes.append(f"Only the {len(shared)} seeds that both runs played ({len(of_a)} in A, {len(of_b)} in B).")
    other = sum(of_a[seed].initial_state != of_b[seed].initial_state for seed in shared)
    if paired and other:
        notes.append(
            f"{other} of {len(shared)} seeds began in different states in A and B: the test stays valid, "
            "but pairs gain little. Look for a difference in software or hardware."
        )
    solved = sum(r.success_at_reset for r in (*of_a.values(), *of_b.values()))
    return notes + ([f"{solved} episodes were solved at reset, before any action."] if solved else [])


def _side(run: Evaluation, wins: list[bool]) -> dict[str, Any]:
    return {
        "run": run.path, "policy": run.protocol.get("policy"), "command": run.command, "finished": run.finished,
        "protocol": run.protocol, "success": proportion(sum(wins), len(wins)).to_json(),
    }  # fmt: skip


def _range(rows: Sequence[EpisodeRecord]) -> str:
    return f"{rows[0].seed} to {rows[-1].seed} ({len(rows)})"


def _fixed(wins_a: list[bool], wins_b: list[bool], *, paired: bool, options: Options) -> dict[str, Any]:
    """Test, interval and the two one-sided bounds for a number of episodes that was fixed beforehand."""
    k_a, n_a, k_b, n_b = sum(wins_a), len(wins_a), sum(wins_b), len(wins_b)
    both_sided, one_sided = options.confidence, 2 * options.confidence - 1
    discordant: int | None
    if paired:
        pairs = count_pairs(wins_a, wins_b)
        only_a, only_b = pairs["only_a"], pairs["only_b"]
        method, p_value, discordant = "McNemar, exact", mcnemar_p(only_a, only_b), only_a + only_b
        wide, narrow = (paired_interval(only_a, only_b, n=n_a, confidence=c) for c in (both_sided, one_sided))
    else:
        method, p_value, discordant = "Barnard, exact", barnard_p((k_a, n_a), (k_b, n_b)), None
        wide, narrow = (unpaired_interval((k_a, n_a), (k_b, n_b), confidence=c) for c in (both_sided, one_sided))
    return {
        "test": {"method": method, "p_value": p_value, "discordant": discordant},
        "interval": wide.to_json(), "bounds": {"low": narrow.low, "high": narrow.high},
        "verdict": _verdict(p_value <= 1 - options.confidence, wide.difference),
    }  # fmt: skip


def _verdict(significant: bool, difference: float) -> str:
    return "not distinguishable" if not significant else "B better" if difference > 0 else "A better"


def _sequential(wins_a: list[bool], wins_b: list[bool], *, options: Options) -> dict[str, Any]:
    """The anytime-valid test, and bounds that hold at all looks together."""
    alpha = 1 - options.confidence
    found, history = sequential_test(np.array(wins_a), np.array(wins_b), alpha=alpha)
    pairs = count_pairs(wins_a, wins_b)
    only_a, only_b, n = pairs["only_a"], pairs["only_b"], len(wins_a)

    def bounds(level: float) -> dict[str, float]:
        return {
            "low": sequential_bound(only_a, only_b, n=n, alpha=level),
            "high": -sequential_bound(only_b, only_a, n=n, alpha=level),
        }

    method = "betting confidence sequence (Waudby-Smith and Ramdas 2024), at all looks together"
    interval = Interval((only_b - only_a) / n, **bounds(alpha / 2), confidence=options.confidence, method=method, n=n)
    return {
        "test": {"method": "e-process on discordant pairs", "p_value": found.p_value, "discordant": found.discordant},
        "sequential": asdict(found) | {"needed": 1 / alpha, "history": history.tolist()},
        "interval": interval.to_json(), "bounds": bounds(alpha),
        "verdict": "not distinguishable" if found.claim is None else f"{found.claim} better", "pairs": pairs,
    }  # fmt: skip


def _bootstrap(
    rows_a: list[EpisodeRecord], rows_b: list[EpisodeRecord], *, paired: bool, options: Options, limit: int | None
) -> list[dict[str, Any]]:
    """Differences of return and time to success. Failures have no time: once they are left out, and once they count
    as the time limit, which is the fairer number when one policy solves only the easy starts."""
    out: list[dict[str, Any]] = []

    def add(name: str, values_a: Sequence[float | int], values_b: Sequence[float | int]) -> None:
        arrays = [np.asarray(values, dtype=np.float64) for values in (values_a, values_b)]
        if all(len(values) for values in arrays):
            # Every row has its own generator, so that a row does not depend on those before it.
            generator = np.random.default_rng([options.seed, len(out)])
            interval = bootstrap_interval(*arrays, paired=paired, generator=generator, confidence=options.confidence)
            out.append({"name": name, "a": float(arrays[0].mean()), "b": float(arrays[1].mean())} | interval.to_json())

    add("return", [r.total_reward for r in rows_a], [r.total_reward for r in rows_b])
    if paired:
        solved = [(x.steps_to_success, y.steps_to_success) for x, y in zip(rows_a, rows_b, strict=True)]
        both = [(x, y) for x, y in solved if x is not None and y is not None]
        add("steps to success, where both succeed", [x for x, _ in both], [y for _, y in both])
    else:
        times = [[t for row in rows if (t := row.steps_to_success) is not None] for rows in (rows_a, rows_b)]
        add("steps to success, of those that succeed", *times)
    if limit is not None:
        capped = [
            [limit if r.steps_to_success is None else r.steps_to_success for r in rows] for rows in (rows_a, rows_b)
        ]
        add(f"steps to success, failures count {limit}", *capped)
    return out
