"""Run directories: one folder a run, made in one piece, never overwritten.

    runs/<date>_<time>_<stage>_<task>_s<seed>/
        config.yaml command.txt provenance.json status.json metrics.jsonl log.txt checkpoints/ ...

Every file that is replaced during a run is written to a temporary name, synced and renamed, so a killed run leaves
whole files behind.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from robot_rl.errors import RunError, closest
from robot_rl.runs.provenance import collect

log = logging.getLogger(__name__)


class RunState(str, Enum):
    """What became of a run. A killed process leaves `running` behind."""

    running = "running"
    finished = "finished"
    interrupted = "interrupted"
    failed = "failed"


class RunDirectory:
    """An existing run directory; make one with `create`, continue one with `open`.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def stage(self) -> str:
        """Name of the stage that made this run."""
        return str(self.read_json("status.json")["stage"])

    @classmethod
    def create(
        cls, root: str | Path, *, stage: str, task: str, seed: int, config_yaml: str, command: Sequence[str]
    ) -> RunDirectory:
        """Make a new run directory below `root`; `_2`, `_3` ... is added when the name is taken.

        Args:
            root: folder of all runs, made when missing.
            stage: the stage's name.
            task: what it works on; characters that don't belong in a file name become `-`.
            seed: of the run.
            config_yaml: the whole configuration.
            command: the words of the command line.

        Raises:
            RunError: when `root` can't be written.
        """
        name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{stage}_{_file_name(task)}_s{seed}"
        temporary = Path(root) / f".{name}.{os.getpid()}"
        try:
            temporary.mkdir(parents=True)
            (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
            (temporary / "command.txt").write_text(shlex.join(command) + "\n", encoding="utf-8")
            write_json(temporary / "provenance.json", collect())
            write_json(
                temporary / "status.json",
                {"state": RunState.running.value, "stage": stage, "task": task, "seed": seed, "pid": os.getpid()},
            )
            for empty in ("metrics.jsonl", "log.txt"):
                (temporary / empty).touch()
            return cls(_rename_to_free_name(temporary, Path(root), name))
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunError(
                str(root), expected="a folder that can be written", got=str(error), hint="Set run_root=<folder>."
            ) from error

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open an existing run, to read or to resume it.

        Raises:
            RunError: when `path` is no run directory; names the files that are missing.
        """
        path = Path(path)
        missing = [name for name in ("config.yaml", "status.json") if not (path / name).is_file()]
        if missing:
            near = path if path.is_dir() else path.parent
            runs = sorted(p.parent.name for p in near.glob("*/status.json"))[-8:]
            raise RunError(
                str(path),
                expected="a run directory",
                got=f"no {' and no '.join(missing)} there" if path.is_dir() else "no such folder",
                hint=f"{near} holds these runs. {closest(path.name, runs)}" if runs else "Give the folder of one run.",
            )
        return cls(path)

    def set_status(self, state: RunState | str, **info: Any) -> None:
        """Write status.json: the new state and `info` (JSON types) over what is known of the run.

        Raises:
            RunError: unknown state, or values that JSON can't hold.
        """
        names = [member.value for member in RunState]
        if state not in names:
            raise RunError(
                f"{self.path}/status.json", expected="a run state", got=repr(state), hint=closest(str(state), names)
            )
        identity = {k: v for k, v in self.read_json("status.json").items() if k in ("stage", "task", "seed")}
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.write_json(
            "status.json", {"state": RunState(state).value, **identity, "pid": os.getpid(), "time": now, **info}
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Its state while a stage runs inside it, and what became of it; whatever ends the stage (Ctrl-C too) goes on."""
        self.set_status(RunState.running)
        try:
            yield
        except BaseException as error:
            state = RunState.interrupted if isinstance(error, KeyboardInterrupt) else RunState.failed
            self.set_status(state, message=str(error))
            raise
        self.set_status(RunState.finished)

    def write_json(self, name: str, value: Any) -> Path:
        """Write `name` below this directory in one piece (synced, then renamed) and return its path.

        Raises:
            RunError: a number that is not finite, or a value that JSON can't hold.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
        return path

    def read_json(self, name: str) -> Any:
        """Read a JSON file below this directory.

        Raises:
            RunError: missing or damaged file.
        """
        return read_json(self.path / name)

    @contextmanager
    def log_file(self, level: int = logging.INFO) -> Iterator[None]:
        """Append everything logged inside to log.txt."""
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handler.setLevel(level)
        root = logging.getLogger()
        level_before = root.level
        root.setLevel(min(level, level_before) if level_before else level)
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level_before)
            handler.close()


def command_of(run: Path) -> str:
    """The command line that made a run; "" where it was not kept."""
    path = run / "command.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece: temporary name, fsync, rename. Raises RunError on values JSON can't hold."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    except (ValueError, TypeError) as error:
        raise RunError(
            str(path), expected="finite numbers, text, lists and dicts", got=str(error), hint="Convert the value first."
        ) from error
    write_synced(path, text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises RunError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            str(path), expected="a readable JSON file", got=str(error), hint="The run or checkpoint is incomplete."
        ) from error


def write_synced(path: Path, content: bytes) -> None:
    """Replace a file in one piece; on the disk when this returns. What was there stays when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_to_free_name(temporary: Path, root: Path, name: str) -> Path:
    for number in range(1, 1000):
        target = root / (name if number == 1 else f"{name}_{number}")
        if target.exists():
            continue
        try:
            # Fails when another process took the name meanwhile: a run directory is never empty.
            os.rename(temporary, target)
        except OSError:
            if not target.exists():
                raise
            continue
        sync_folder(root)
        return target
    raise OSError(f"{name} is taken 999 times")


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._") or "none"
