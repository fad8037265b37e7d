"""Where the members of a sweep run: processes of this machine, tasks of Ray, or jobs of Slurm by submitit.

submitit pickles which function a job calls, and unpickles it in the job: the sweep's folder must be one that only its owner writes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from robot_rl.errors import ConfigError, RunError


@runtime_checkable
class Job(Protocol):
    """One command that runs."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs or waits."""
        ...

    def end(self) -> int:
        """Ask it to end, wait, and return its exit code; -1 when it has none."""
        ...


@runtime_checkable
class Launcher(Protocol):
    """Starts commands."""

    def start(self, words: Sequence[str], out: Path, errors: Path) -> Job:
        """Start `robot-rl <words>`; stdout replaces `out`, stderr is added to `errors`."""
        ...


def run_words(words: Sequence[str], out: Path, errors: Path, folder: Path) -> int:
    """Run `robot-rl <words>` in `folder` until it ends; its exit code."""
    process = _process(words, out, errors, folder)
    try:
        return process.wait()
    except BaseException:  # the task was cancelled: the member saves and ends by itself
        process.terminate()
        process.wait()
        raise


def _process(words: Sequence[str], out: Path, errors: Path, folder: Path) -> subprocess.Popen[str]:
    with open(folder / out, "w", encoding="utf-8") as file, open(folder / errors, "a", encoding="utf-8") as wrong:
        command = [sys.executable, "-m", "robot_rl", *words]
        return subprocess.Popen(command, stdout=file, stderr=wrong, text=True, cwd=folder)


class LocalJob:
    """A Job that is a process here."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def poll(self) -> int | None:
        """See Job."""
        return self._process.poll()

    def end(self) -> int:
        """See Job; the member saves and ends by itself."""
        self._process.terminate()
        return self._process.wait()


class LocalLauncher:
    """A Launcher of processes here."""

    def start(self, words: Sequence[str], out: Path, errors: Path) -> LocalJob:
        """See Launcher."""
        return LocalJob(_process(words, out, errors, Path.cwd()))


class RayJob:
    """A Job that is a task of Ray."""

    def __init__(self, ray: Any, reference: Any, errors: Path) -> None:
        self._ray, self._reference, self._errors = ray, reference, errors

    def poll(self) -> int | None:
        """See Job; -1 for a task whose worker died, whose reason is then the last line of `errors`."""
        if not self._ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return int(self._ray.get(self._reference))
        except self._ray.exceptions.RayError as error:
            with open(self._errors, "a", encoding="utf-8") as file:
                file.write(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}\n")
            return -1

    def end(self) -> int:
        """See Job."""
        self._ray.cancel(self._reference)
        self._ray.wait([self._reference])
        return -1


class RayLauncher:
    """A Launcher of Ray tasks, one core each.

    Args:
        address: of a running cluster, host:port or "auto".
        jobs: cores that it must have.

    Raises:
        RunError: no Ray there, or fewer cores.
    """

    def __init__(self, address: str, jobs: int) -> None:
        from robot_rl.engines.ray_workers import connect

        self._ray = connect(workers=jobs, address=address)
        # A member that was cut off is continued by `--resume`, not begun again by Ray.
        self._remote = self._ray.remote(num_cpus=1, max_retries=0)(run_words)

    def start(self, words: Sequence[str], out: Path, errors: Path) -> RayJob:
        """See Launcher; `out` and `errors` lie on a disk that all nodes see."""
        return RayJob(self._ray, self._remote.remote(list(words), out, errors, Path.cwd()), errors)


class SlurmJob:
    """A Job that submitit follows."""

    def __init__(self, job: Any, errors: Path) -> None:
        self._job, self._errors = job, errors

    def poll(self) -> int | None:
        """See Job; -1 for a job that Slurm ended, whose reason is then the last line of `errors`."""
        if not self._job.done():
            return None
        error = self._job.exception()
        if error is None:
            return int(self._job.result())
        with open(self._errors, "a", encoding="utf-8") as file:
            file.write(f"job {self._job.job_id}: {str(error).strip().splitlines()[-1]}\n")
        return -1

    def end(self) -> int:
        """See Job."""
        self._job.cancel(check=False)
        return -1


class SlurmLauncher:
    """A Launcher of Slurm jobs.

    Args:
        folder: where submitit keeps its files; every node sees it.
        options: of submitit's AutoExecutor (timeout_min, cpus_per_task, mem_gb, gpus_per_node, slurm_partition, ...), and
            `cluster`: slurm, or local for processes of this machine without Slurm.

    Raises:
        ConfigError: an option that submitit does not have.
        RunError: there is no Slurm here.
    """

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        import submitit

        given = dict(options)
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=given.pop("cluster", "slurm"))
            self._executor.update_parameters(**{key: int(v) if v.isdigit() else v for key, v in given.items()})
        except RuntimeError as error:
            raise RunError(
                "--slurm", expected="a machine with Slurm (srun)", got=str(error),
                hint="Submit from a login node, or use --jobs for processes of this machine.",
            ) from error  # fmt: skip
        except (TypeError, ValueError, NameError, AttributeError) as error:
            raise ConfigError(
                "--slurm-options", expected="parameters of submitit.AutoExecutor", got=str(error),
                hint="E.g. timeout_min=60,cpus_per_task=4,gpus_per_node=1,slurm_partition=gpu.",
            ) from error  # fmt: skip

    def start(self, words: Sequence[str], out: Path, errors: Path) -> SlurmJob:
        """See Launcher; the job is in Slurm's queue from then on."""
        return SlurmJob(self._executor.submit(run_words, list(words), out, errors, Path(os.getcwd())), errors)
