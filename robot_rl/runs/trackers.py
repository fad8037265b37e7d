"""Trackers beside a run: TensorBoard always, wandb or trackio when asked; their failure never stops training.

A thread follows every metrics.jsonl below the run directory and passes new lines on. The stages know nothing of it, so
a tracker that hangs, raises or has no network costs a warning and no training step; metrics.jsonl has every number
whatever happens here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from robot_rl.errors import ConfigError, closest

log = logging.getLogger(__name__)

# Large enough for a resumed run's whole history, small enough that a line a second does not wait.
_POLL_S = 1.0
_CLOSE_S = 10.0


@runtime_checkable
class Tracker(Protocol):
    """Receives the metrics of one metrics.jsonl."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record one line."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class TensorBoardTracker:
    """Event files in `<run>/tensorboard`; `tensorboard --logdir runs` shows all runs.

    Raises:
        ModuleNotFoundError: without the tensorboard package.
    """

    def __init__(self, run: Path, *, project: str) -> None:
        """Open the event file of the run directory `run`; `project` has no meaning here."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record one line as scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


class WandbTracker:
    """Weights & Biases; the user's own WANDB_MODE, API key and host apply.

    Raises:
        ModuleNotFoundError: without the wandb package.
    """

    def __init__(self, run: Path, *, project: str) -> None:
        """Begin a run named like the directory `run` in `project`."""
        import wandb

        self._run: Any = wandb.init(project=project, name=run.name, dir=str(run), config=_configuration(run))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line; the step is a metric of its own, for wandb refuses steps that go back after a resume."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Flush and end."""
        self._run.finish()


class TrackioTracker:
    """trackio, a local tracker with wandb's interface.

    Raises:
        ModuleNotFoundError: without the trackio package.
    """

    def __init__(self, run: Path, *, project: str) -> None:
        """Begin a run named like the directory `run` in `project`."""
        import trackio

        self._module: Any = trackio
        trackio.init(project=project, name=run.name, config=_configuration(run))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line."""
        self._module.log({"step": step, **values})

    def close(self) -> None:
        """Flush and end."""
        self._module.finish()


TRACKERS: dict[str, Callable[..., Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


def check_names(names: Sequence[str]) -> None:
    """Refuse a tracker that does not exist. Raises ConfigError naming the valid ones."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"--track {name}", expected="trackers of " + ", ".join(TRACKERS), got=repr(name),
                hint=closest(name, TRACKERS),
            )  # fmt: skip


class Follower:
    """Passes the metrics of a run, and of the runs inside it, to trackers. Use as a context manager.

    Args:
        run: the run directory.
        names: of TRACKERS.
        project: for trackers that have projects.
        poll_s: seconds between two looks at the files.
    """

    def __init__(self, run: Path, names: Sequence[str], *, project: str = "robot-rl", poll_s: float = _POLL_S) -> None:
        check_names(names)
        self._root, self._names, self._project, self._poll_s = run, list(names), project, poll_s
        self._end = threading.Event()
        self._open: dict[tuple[str, Path], Tracker] = {}
        # A resumed run continues behind what its file holds now; earlier lines were passed on by the earlier process.
        self._offsets = {path: path.stat().st_size for path in self._files()}
        self._thread = threading.Thread(target=self._follow, name="trackers", daemon=True)

    def __enter__(self) -> Follower:
        if self._names:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_CLOSE_S)
            if self._thread.is_alive():
                log.warning("trackers %s did not end within %g s and are left behind", self._names, _CLOSE_S)

    def _follow(self) -> None:
        last = False
        while not last:
            last = self._end.wait(self._poll_s)
            for path in self._files():
                self._pass_on(path)
        for (name, _), tracker in list(self._open.items()):
            self._guarded(name, tracker.close)

    def _files(self) -> list[Path]:
        # Named places: a search through the whole run would walk the chunks of its dataset every second.
        return [*self._root.glob("metrics.jsonl"), *sorted(self._root.glob("stages/*/metrics.jsonl"))]

    def _pass_on(self, path: Path) -> None:
        size = path.stat().st_size
        # A stage that resumes cuts its file back to its checkpoint.
        offset = min(self._offsets.get(path, 0), size)
        with open(path, "rb") as file:
            file.seek(offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offsets[path] = offset + len(whole) + len(newline)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # metrics.read_metrics is the judge of damaged lines
                values = json.loads(line)
                step = values.pop("step")
                for name in list(self._names):
                    self._guarded(name, partial(self._write, name, path.parent, step, values))

    def _write(self, name: str, run: Path, step: int, values: Mapping[str, float]) -> None:
        self._tracker(name, run).write(step, values)

    def _tracker(self, name: str, run: Path) -> Tracker:
        if (name, run) not in self._open:
            if name != "tensorboard":
                # wandb and trackio have one run a process: the earlier stage of a pipeline ends when the next begins.
                for key in [key for key in self._open if key[0] == name]:
                    self._open.pop(key).close()
            self._open[name, run] = TRACKERS[name](run, project=self._project)
        return self._open[name, run]

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        """Call, and drop the tracker with one warning when it fails."""
        began = time.monotonic()
        try:
            call()
        except ModuleNotFoundError as error:
            self._drop(name, f"package {error.name} is not installed (pip install {error.name})")
        except BaseException as error:
            self._drop(name, f"{type(error).__name__}: {error} (after {time.monotonic() - began:.1f} s)")

    def _drop(self, name: str, why: str) -> None:
        if name in self._names:
            self._names.remove(name)
            log.warning("tracker %s is off for this run: %s. metrics.jsonl has every number.", name, why)


def _configuration(run: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
    return plain if isinstance(plain, dict) else {}
