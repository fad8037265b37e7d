"""Evaluation runs as the comparison reads them: episodes, protocol, and whether two runs did the same thing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError, DataError, RunError
from robot_rl.rollout import EpisodeRecord
from robot_rl.runs.directory import RunDirectory, command_of

# `history` is the number of frames the policy asks for; the episodes are the same for any.
MAY_DIFFER = ("policy", "num_envs", "task_episodes", "first_seed", "num_episodes", "history")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation run that was read.

    Attributes:
        path: of the run directory.
        records: of its episodes, in seed order.
        protocol: of summary.json, or the configuration of the environment when the run is not finished.
        finished: whether there is a summary.
        command: that made it.
    """

    path: str
    records: tuple[EpisodeRecord, ...]
    protocol: dict[str, Any]
    finished: bool
    command: str


def read_evaluation(path: Path, *, may_run: bool = False) -> Evaluation:
    """Read an evaluation run without touching it.

    Args:
        path: run directory.
        may_run: accept a run that is still going; its protocol is then the configuration of its environment.

    Raises:
        RunError: no run directory, no evaluation, or not finished.
        DataError: a damaged table, no episodes, or a seed twice.
    """
    run = RunDirectory.open(path)
    table = path / "episodes.jsonl"
    if not table.is_file():
        raise RunError(
            str(path), expected="an evaluation run, with episodes.jsonl", got=f"a run of {run.stage}",
            hint=f"Evaluate it first: robot-rl evaluate policy={path}.",
        )  # fmt: skip
    finished = (path / "summary.json").is_file()
    if not finished and not may_run:
        raise RunError(
            str(path), expected="a finished evaluation", got="no summary.json",
            hint=f"Finish it with `robot-rl evaluate resume={path}`, or look at it with --sequential.",
        )  # fmt: skip
    records = sorted(_records(table, may_be_torn=not finished), key=lambda record: record.seed)
    seeds = [record.seed for record in records]
    if not seeds or len(set(seeds)) < len(seeds):
        raise DataError(
            str(table), expected="at least one episode, and each seed once",
            got=f"{len(seeds)} episodes with {len(set(seeds))} seeds", hint="Evaluate again.",
        )  # fmt: skip
    protocol = run.read_json("summary.json").get("protocol") if finished else _configured(path)
    if not isinstance(protocol, dict):
        raise DataError(
            f"{path}/summary.json", expected="a protocol", got="none",
            hint="Evaluate again with this version of robot-rl.",
        )  # fmt: skip
    return Evaluation(str(path), tuple(records), protocol, finished, command_of(path))


def _records(table: Path, *, may_be_torn: bool) -> list[EpisodeRecord]:
    """Rows of episodes.jsonl. The last one may be half written while the run goes on; rollout.read_records would cut
    it off the file, under the hands of the run."""
    records, lines = [], table.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(EpisodeRecord(**json.loads(line)))
        except (ValueError, TypeError) as error:
            if may_be_torn and number == len(lines):
                break
            raise DataError(
                f"{table} line {number}", expected="an episode record", got=str(error),
                hint="Evaluate again with this version of robot-rl.",
            ) from error  # fmt: skip
    return records


def _configured(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    return {"env": config.get("env", {}), "policy": config.get("policy")}


def check_protocols(a: Evaluation, b: Evaluation, *, allow: Sequence[str] = ()) -> list[str]:
    """Refuse runs that did not do the same thing.

    Args:
        a, b: the runs.
        allow: keys that may differ, e.g. "versions.torch", or "versions" for all below it.

    Returns:
        One remark for each difference that `allow` covers, and one when a run is not finished.

    Raises:
        DataError: naming the keys that differ.
        ConfigError: `allow` names a key that neither run has.
    """
    first, second = a.protocol, b.protocol
    going = [run.path for run in (a, b) if not run.finished]
    if going:
        first, second = _configured(Path(a.path)), _configured(Path(b.path))
    left, right = _flat(first), _flat(second)
    for key in allow:
        if not any(_below(name, key) for name in left | right):
            raise ConfigError(
                f"--allow {key}", expected="a key of the protocol", got="none of that name",
                hint="Keys: " + ", ".join(sorted(left | right)) + ".",
            )  # fmt: skip
    wrong: list[str] = []
    allowed: list[str] = []
    for name in sorted(left | right):
        if left.get(name, "absent") != right.get(name, "absent") and not any(_below(name, k) for k in MAY_DIFFER):
            line = f"{name}: {left.get(name, 'absent')} in A, {right.get(name, 'absent')} in B"
            (allowed if any(_below(name, key) for key in allow) else wrong).append(line)
    if wrong:
        names = " ".join(f"--allow {line.partition(':')[0]}" for line in wrong)
        raise DataError(
            f"protocols of {a.path} and {b.path}", expected="the same protocol", got="; ".join(wrong),
            hint=f"Evaluate both in the same way. If you know that it does not matter: {names}.",
        )  # fmt: skip
    remarks = [f"{line}; accepted by --allow." for line in allowed]
    if going:
        remarks.append(f"Not finished: {', '.join(going)}. Only the configurations of the environments were compared.")
    return remarks


def _below(name: str, key: str) -> bool:
    return name == key or name.startswith(key + ".")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return out
