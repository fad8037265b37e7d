"""The facts of a run, read from its directory for a report: every file may be missing, torn or damaged.

Nothing is written and nothing is repaired here: the run may still be going on. What is missing becomes a note that the
page shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robot_rl.algorithms.statistics import Proportion, proportion
from robot_rl.errors import RobotRlError
from robot_rl.runs.directory import RunDirectory, RunState, read_json
from robot_rl.runs.metrics import read_metrics

LOG_LINES = 40
KILLED = "killed"
_FILES = ("config.yaml", "status.json", "summary.json", "metrics.jsonl", "pipeline.json")


@dataclass(frozen=True)
class RunFacts:
    """What a run directory tells.

    Attributes:
        path: the directory.
        stage, task: names, "unknown" where status.json is missing.
        state: a RunState, "killed" (status says running, the process is gone) or "unknown".
        status, summary, provenance, latency, parity: JSON documents, empty where missing.
        config: configuration as plain types, empty where missing.
        config_yaml, command, log: texts; the log's last lines.
        metrics: lines of metrics.jsonl.
        episodes: lines of episodes.jsonl.
        dataset: directory of the run's EpisodeStore, or None.
        parts: (name, facts) of the stages of a pipeline.
        notes: sentences about what is missing or damaged.
    """

    path: Path
    stage: str
    task: str
    state: str
    status: Mapping[str, Any]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    latency: Mapping[str, Any]
    parity: Mapping[str, Any]
    config: Mapping[str, Any]
    config_yaml: str
    command: str
    log: str
    metrics: tuple[Mapping[str, Any], ...]
    episodes: tuple[Mapping[str, Any], ...]
    dataset: Path | None
    parts: tuple[tuple[str, RunFacts], ...]
    notes: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The stage without what it is applied to: "evaluate" for a pipeline's evaluate_imitate."""
        return "evaluate" if self.stage.startswith("evaluate") else self.stage

    @property
    def seconds(self) -> float | None:
        """Wall time where it is known."""
        return next(
            (n for n in (number(self.status, "seconds"), number(self.summary, "seconds")) if n is not None), None
        )


def read_run(path: str | Path) -> RunFacts:
    """Read a run directory of any stage, or of a pipeline.

    Raises:
        RunError: `path` holds nothing that a run writes.
    """
    path = Path(path)
    if not any((path / name).is_file() for name in _FILES):
        RunDirectory.open(path)  # raises, and names the runs near by
    notes: list[str] = []
    status = _document(
        path / "status.json", notes, missing="status.json is missing: what became of the run is not known."
    )
    state = _state(status)
    unfinished = state in (KILLED, RunState.interrupted.value, RunState.failed.value, RunState.running.value)
    summary = _document(
        path / "summary.json",
        notes,
        missing=f"summary.json is missing{': the run did not reach its end' if unfinished else ''}.",
    )
    provenance = _document(path / "provenance.json", notes, missing="provenance.json is missing.")
    config_yaml = _text(path / "config.yaml", notes)
    config = _plain_config(config_yaml, notes)
    facts = RunFacts(
        path=path,
        stage=str(status.get("stage", "unknown")),
        task=str(status.get("task", config.get("task", "unknown"))),
        state=state,
        status=status,
        summary=summary,
        provenance=provenance,
        latency=_document(path / "export/latency.json", notes),
        parity=_document(path / "export/parity.json", notes),
        config=config,
        config_yaml=config_yaml,
        command=_text(path / "command.txt", notes).strip(),
        log="\n".join(_text(path / "log.txt", []).splitlines()[-LOG_LINES:]),
        metrics=_metrics(path / "metrics.jsonl", notes),
        episodes=_episodes(path / "episodes.jsonl", notes),
        dataset=find_dataset(path, config),
        parts=_parts(path, notes),
        notes=(),
    )
    return replace(facts, notes=(*_state_notes(facts), *notes))


def number(values: Mapping[str, Any], *keys: str) -> float | None:
    """A number deep in nested documents, or None where it, or anything above it, is missing or of another type."""
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def counted(values: Mapping[str, Any], key: str = "success_once") -> Proportion | None:
    """k of n of a summary, with intervals computed anew; None where it does not have them."""
    found = values.get(key)
    k, n = (found.get("k"), found.get("n")) if isinstance(found, Mapping) else (None, None)
    if not isinstance(k, int) or not isinstance(n, int) or n <= 0 or not 0 <= k <= n:
        return None
    return proportion(k, n)


def parents(facts: RunFacts) -> list[tuple[str, str]]:
    """(what it was, path) of the runs that this one was made from."""
    return [(key, str(facts.config[key])) for key in ("policy", "teacher") if _is_path(facts.config, key)]


def find_dataset(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The dataset of a run: its configuration's, also where the run was moved or started in another folder."""
    named = str(config.get("dataset") or "")
    places = [path / "demonstrations.zarr"]
    if named:
        # A relative path counts from the folder that the run was started in, mostly that of its run_root.
        places += [folder / named for folder in (Path(), *path.absolute().parents[:5])]
        places += [folder / Path(named).name for folder in path.absolute().parents[:3]]
    return next((place for place in places if (place / ".zattrs").is_file()), None)


def _is_path(config: Mapping[str, Any], key: str) -> bool:
    return isinstance(config.get(key), str) and bool(config[key])


def _document(path: Path, notes: list[str], missing: str = "") -> dict[str, Any]:
    if not path.is_file():
        notes.extend([missing] if missing else [])
        return {}
    try:
        value = read_json(path)
    except (RobotRlError, OSError) as error:
        notes.append(f"{path.name} can't be read: {getattr(error, 'got', error)}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} holds no JSON object.")
        return {}
    return value


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{path.name} can't be read: {error.strerror}.")
        return ""


def _plain_config(text: str, notes: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    try:
        plain = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # yaml and omegaconf have no common error class
        notes.append(f"config.yaml can't be read: {type(error).__name__}.")
        return {}
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _metrics(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(read_metrics(path))
    except RobotRlError as error:
        notes.append(f"metrics.jsonl can't be read: {error.got}")
        return ()


def _episodes(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        return ()
    episodes, bad = [], 0
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            episodes.append(value)
        else:
            bad += 1
    if bad:
        notes.append(f"{bad} of {bad + len(episodes)} lines of episodes.jsonl are damaged and left out.")
    return tuple(episodes)


def _state(status: Mapping[str, Any]) -> str:
    state = str(status.get("state", "unknown"))
    return KILLED if state == RunState.running.value and not _is_alive(status.get("pid")) else state


def _is_alive(pid: Any, read: Callable[[Path], bytes] = Path.read_bytes) -> bool:
    """Whether a robot-rl process of that id runs; another program may have got the id since."""
    try:
        words = read(Path(f"/proc/{int(pid)}/cmdline"))
    except (OSError, ValueError, TypeError):
        return False
    return b"robot_rl" in words or b"robot-rl" in words


def _state_notes(facts: RunFacts) -> list[str]:
    message = str(facts.status.get("message", ""))
    if facts.state == KILLED:
        return [
            "The run was killed: its status says running, but its process is gone. What it wrote until then is below."
        ]
    if facts.state == RunState.running.value:
        return ["The run is still going on; this page shows it as it was when the page was written."]
    if facts.state == RunState.interrupted.value:
        return [f"The run was interrupted{': ' + message if message else ''}. Continue it with resume={facts.path}."]
    if facts.state == RunState.failed.value:
        return [f"The run failed: {message or 'no message'}"]
    return []


def _parts(path: Path, notes: list[str]) -> tuple[tuple[str, RunFacts], ...]:
    """The stages of a pipeline in the order they ran; directories are looked up by name, so a moved run reads too."""
    known = _document(path / "pipeline.json", notes)
    folders = {}
    for name, child in known.items():
        stored = Path(str(child.get("run", ""))) if isinstance(child, dict) else Path()
        folder = next(
            (place for place in (path / "stages" / stored.name, stored) if stored.name and place.is_dir()), None
        )
        if folder is None:
            notes.append(f"The run directory of stage {name} is gone.")
        else:
            folders[name] = folder
    for folder in sorted(path.glob("stages/*/")):
        if folder.name not in {place.name for place in folders.values()}:
            folders[folder.name] = folder
    parts = []
    for name, folder in folders.items():
        try:
            part = read_run(folder)
        except RobotRlError:
            notes.append(f"Nothing of stage {name} can be read.")
            continue
        child = known.get(name)
        seconds = number(child, "seconds") if isinstance(child, dict) else None
        parts.append((name, part if seconds is None else replace(part, status={**part.status, "seconds": seconds})))
    return tuple(parts)
