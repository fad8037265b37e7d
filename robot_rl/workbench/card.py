"""Model card of an exported policy, as Markdown: `robot-rl card EXPORT_RUN --evaluation RUN --set licence=Apache-2.0`.

Everything measured is read from the files that measured it: what the policy reads and does from the ONNX file, parity and
latency from beside it, where it comes from along the runs that it names, success from evaluation runs *of this very file*.
What only people know (FIELDS) is said with --set; what nobody said stands there as not said.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robot_rl.algorithms.statistics import proportion
from robot_rl.deploy.loop_policy import policy_file
from robot_rl.deploy.onnx_policy import exported_file
from robot_rl.deploy.policy_source import PolicySource, load_policy
from robot_rl.errors import ConfigError, DataError, RunError
from robot_rl.runs.directory import command_of, read_json, write_synced
from robot_rl.specs import EnvSpec
from robot_rl.workbench.evaluations import read_evaluation

FIELDS = {
    "licence": "of the weights, an SPDX name",
    "use": "what it is for",
    "not_for": "what it must not be used for",
    "hardware": "arms that it has really moved",
    "contact": "who answers",
    "notes": "what a user should know",
}
# Keys of config.yaml by which a run names the run that its policy comes from, in this order.
_PARENTS = ("policy", "teacher")
_MOST_PARENTS = 12


def main(words: Sequence[str]) -> int:
    """Print or write the card.

    Raises:
        ConfigError: an unknown field.
        DataError: an evaluation of another policy.
        PolicyError: no exported policy.
        RunError: no run where one is named, or the card can't be written.
    """
    parser = argparse.ArgumentParser(
        prog="robot-rl card", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="fields:\n" + "\n".join(f"  {key:<10} {what}" for key, what in FIELDS.items()),
    )  # fmt: skip
    parser.add_argument("policy", help="run directory of `export`, or its .onnx file")
    parser.add_argument("--evaluation", action="append", default=[], type=Path, metavar="RUN", help="of this file")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=TEXT")
    parser.add_argument("--output", type=Path, help="file to write (default: print)")
    asked = parser.parse_args(list(words))
    text = model_card(policy_file(asked.policy), asked.evaluation, said(asked.set))
    if asked.output is None:
        sys.stdout.write(text)
        return 0
    try:
        write_synced(asked.output, text.encode())
    except OSError as error:
        raise RunError(
            str(asked.output), expected="a file that can be written", got=str(error), hint="Give another --output."
        ) from error
    print(asked.output)
    return 0


def said(settings: Sequence[str]) -> dict[str, str]:
    """FIELD=TEXT as a mapping.

    Raises:
        ConfigError: an unknown field, or no text.
    """
    out = {}
    for setting in settings:
        field, _, text = setting.partition("=")
        if field not in FIELDS or not text:
            raise ConfigError(
                f"card --set {setting}", expected="FIELD=TEXT", got=repr(setting), hint=f"Fields: {', '.join(FIELDS)}."
            )
        out[field] = text
    return out


def model_card(onnx: Path, evaluations: Sequence[Path], people: Mapping[str, str]) -> str:
    """The card.

    Args:
        onnx: exported policy.
        evaluations: run directories of `evaluate`.
        people: field of FIELDS -> text.

    Raises:
        DataError: an evaluation of another policy.
        RunError: an evaluation that is none.
    """
    policy = load_policy(PolicySource(onnx=str(onnx)))
    spec: EnvSpec = policy.spec
    rows = [_evaluated(path, onnx) for path in evaluations]
    digest = hashlib.sha256(onnx.read_bytes()).hexdigest()
    lines = [
        "---", f"license: {people.get('licence', 'unknown').lower()}", "pipeline_tag: robotics", "tags: [robot-rl]", "---",
        "", f"# {spec.env_id}, {policy.metadata['sampling']}", "",
        f"{onnx.name}, {onnx.stat().st_size} bytes, SHA-256 `{digest}`.", "",
        "| | |", "|---|---|", *(f"| {key} | {_cell(people.get(key, f'not said ({what})'))} |" for key, what in FIELDS.items()),
        "", "## Success", "", *_success(rows),
        "", "## What it reads", "", *_reads(spec, policy.config.observation_keys, policy.config.history),
        "", "## What it says", "", *_says(spec, policy.config.horizon, policy.config.execute),
        "", "## The file against torch", "", *_measured(onnx.parent, "rti" if "rti" in policy.metadata else ""),
        "", "## Where it comes from", "", *_lineage(str(policy.metadata.get("checkpoint", "not said"))),
        "", "Versions: " + ", ".join(f"{k} {v}" for k, v in policy.metadata.get("versions", {}).items()) + ".", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _evaluated(path: Path, onnx: Path) -> tuple[str, int, int, str, str]:
    """task, successes, episodes, how it was played, command."""
    evaluation = read_evaluation(path)
    named = evaluation.protocol.get("policy", {})
    path_of = str(named.get("path", "")) if isinstance(named, dict) else str(named)
    other = exported_file(path_of)
    if other is None or other.resolve() != onnx.resolve():
        raise DataError(
            str(path), expected=f"an evaluation of {onnx}", got=f"one of {path_of or 'an expert'}",
            hint=f"Evaluate this file: robot-rl evaluate policy={onnx}.",
        )  # fmt: skip
    protocol, records = evaluation.protocol, evaluation.records
    how = f"seeds {records[0].seed}-{records[-1].seed}, {protocol.get('sim_backend', 'see command')}"
    wins = sum(record.success_once for record in records)
    return str(protocol.get("task", "")), wins, len(records), how, evaluation.command


def _success(rows: Sequence[tuple[str, int, int, str, str]]) -> list[str]:
    if not rows:
        return ["Not evaluated here. Name evaluation runs of this file with --evaluation."]
    out = ["| task | success once | Wilson 95 % | played | command |", "|---|---|---|---|---|"]
    for task, wins, count, how, command in rows:
        share = proportion(wins, count)
        out.append(f"| {task} | {wins}/{count} | {share.low:.1%} to {share.high:.1%} | {how} | `{_cell(command)}` |")
    return out


def _reads(spec: EnvSpec, keys: Sequence[str], history: int) -> list[str]:
    head = f"{history} observation(s) at {spec.control_hz:g} Hz from {spec.robot}."
    arrays = [(key, spec.observation[key]) for key in keys]
    table = [f"| {key} | {a.dtype} {a.shape} | {_cell(', '.join(dict.fromkeys(a.units)))} |" for key, a in arrays]
    return [head, "", "| key | array | units |", "|---|---|---|", *table]


def _says(spec: EnvSpec, horizon: int, execute: int) -> list[str]:
    meaning, action = spec.action_semantics, spec.action
    reference = f", added to {meaning.delta_reference.value}" if meaning.kind.value == "delta" else ""
    text = f"Chunks of {horizon} actions, of which {execute} are played. {meaning.kind.value}{reference}, frame "
    text += (
        f"{meaning.frame}, rotation {meaning.rotation}, gripper {meaning.gripper}, control mode {meaning.control_mode}."
    )
    rows = [
        f"| {i} | {_at(action.meanings, i)} | {_at(action.units, i)} | {_bounds(action.low, action.high, i)} |"
        for i in range(action.size)
    ]
    return [text, "", "| element | meaning | unit | range |", "|---|---|---|---|", *rows]


def _measured(folder: Path, part: str) -> list[str]:
    """What stands beside the file; `part`: the field of a file that is not policy.onnx."""
    out = []
    if (folder / "parity.json").is_file():
        parity = read_json(folder / "parity.json")
        parity |= parity[part] if part else {}
        out.append(f"Largest difference {parity['max_error']:.2g} action units over {parity['cases']} cases.")
    if (folder / "latency.json").is_file():
        latency, machine = read_json(folder / "latency.json"), folder.parent / "provenance.json"
        latency = latency[part] if part else latency
        where = read_json(machine).get("cpu_model", "unknown") if machine.is_file() else "unknown"
        out.append(
            f"One decision: p50 {latency['p50_ms']:.3f} ms, p99 {latency['p99_ms']:.3f} ms ({latency['provider']}, "
            f"{latency['threads']} thread(s), {where}, load {latency['load_average_1min']:.1f})."
        )
    return out or ["No parity.json and latency.json stand beside the file."]


def _lineage(checkpoint: str) -> list[str]:
    from omegaconf import OmegaConf

    out, path = [], Path(checkpoint)
    for _ in range(_MOST_PARENTS):
        run = next((p for p in (path, *path.parents[:2]) if (p / "config.yaml").is_file()), None)
        if run is None:
            out.append(f"- `{path}`: not on this machine")
            break
        config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
        data = config.get("datasets") or config.get("dataset")
        words = command_of(run)
        out.append(f"- `{run.name}`" + (f", data {_cell(data)}" if data else "") + (f": `{words}`" if words else ""))
        parent = next((config[key] for key in _PARENTS if isinstance(config.get(key), str) and config[key]), None)
        if parent is None:
            break
        path = Path(parent)
    return out


def _at(texts: Sequence[str], element: int) -> str:
    return _cell(texts[element] if element < len(texts) else texts[0] if texts else "")


def _bounds(low: Sequence[float] | None, high: Sequence[float] | None, element: int) -> str:
    return "free" if low is None or high is None else f"{low[element]:g} to {high[element]:g}"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
