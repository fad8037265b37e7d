"""A learner in a process of its own: `python -m robot_rl.fitting.learner_process FD`, started by learner_link.ProcessLearning.

It holds all that learns and answers in the order it was asked: "learn" from a batch, "roll_back", "save". Batches and weights
cross as safetensors files that are there whole or not at all, everything else as small JSON; nothing is pickled.
It learns from a batch while the robot plays the next one with the weights of before. So a batch is one update old when its turn
comes: the ratio is over the density of the weights that drew it, as in Cleanba (Huang et al. 2023, arXiv 2310.00036), and the
same seeds give the same run, however quick either side is.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.child_process import parent_socket, receive
from robot_rl.errors import RobotRlError
from robot_rl.fitting.demonstrations import Imitated
from robot_rl.fitting.on_policy import OnPolicyBatch
from robot_rl.fitting.online_learning import Anchor, LearningConfig, learn, save_learning, start_learning
from robot_rl.runs.checkpoint import latest_checkpoint
from robot_rl.runs.config import convert_config
from robot_rl.runs.directory import write_synced
from robot_rl.types import Observation

log = logging.getLogger("robot_rl.learner")

# The robot's loop goes first where both want a core.
NICE = 5
WEIGHTS = "policy.safetensors"
_OBSERVATION, _PLAYER = "observation.", "player_"


class LearnerSide:
    """What learns, and which of its weights the robot plays with.

    Args:
        config: see LearningConfig.
        run: the run directory; goes on from its newest checkpoint.
    """

    def __init__(self, config: LearningConfig, run: Path) -> None:
        self.config, self.run = config, run
        self.state, self._documents = start_learning(config, run)
        self._imitated, self._seen = Imitated(self.state.learner.policy, config.demonstrations), 0
        self._player = self._now() | player_of(run)

    def handle(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Do what was asked; the answer, JSON types.

        Raises:
            RobotRlError: a loss that is no number, a damaged batch, a full disk.
        """
        kind = asked["do"]
        if kind == "learn":
            return {"do": kind, "values": self._learn(asked)}
        if kind == "roll_back":
            self.state.roll_back()
            self._player = self._now()
            return {"do": kind}
        return {"do": kind, "iteration": self._save(asked)}

    def _now(self) -> dict[str, dict[str, torch.Tensor]]:
        """Copies of what may be played or deployed: "policy", and "student" where there is one."""
        student = {} if self.state.student is None else {"student": _copy(self.state.student.average.state_dict())}
        return {"policy": _copy(self.state.learner.policy.state_dict()), **student}

    def _learn(self, asked: Mapping[str, Any]) -> dict[str, float]:
        state = self.state
        policy = state.learner.policy
        batch = read_batch(folder_of(self.run) / asked["batch"], policy.device)
        if asked["remember"]:
            state.best = _copy(self._player["policy"])
            state.best_student = _copy(self._player["student"]) if "student" in self._player else None
        drawn_by = None
        if asked["age"]:
            drawn_by = copy.deepcopy(policy)
            drawn_by.load_state_dict(self._player["policy"])
        before = self._now()
        values = learn(
            state, batch, config=self.config, moves=asked["moves"], anchor=self._anchor(asked["episodes"]),
            drawn_by=drawn_by,
        )  # fmt: skip
        # The robot took the weights of before this update when it handed over the batch.
        self._player = before
        from safetensors.torch import save

        write_synced(folder_of(self.run) / WEIGHTS, save(_plain(policy.state_dict())))
        return values

    def _anchor(self, episodes: int) -> Anchor | None:
        """The imitation loss over demonstrations and the first `episodes` of this run."""
        if self._seen < episodes:
            with EpisodeStore.open(self.run / "episodes.zarr") as store:
                new = store.episodes(self._seen, episodes)
            self._imitated.add(new, successes=self.config.imitate_successes)
            self._seen = episodes
        return self._imitated.loss if self._imitated.num_windows else None

    def _save(self, asked: Mapping[str, Any]) -> int:
        """A checkpoint; behind the last batch its policy is the one that played, not the one that learned meanwhile."""
        document = asked["document"]
        self.state.count_from(document)
        tensors = self.state.tensors()
        tensors |= self._player if asked["is_last"] else {_PLAYER + name: some for name, some in self._player.items()}
        save_learning(
            self.run, step=asked["step"], tensors=tensors, student=self.state.student,
            documents=self._documents | {"online": document},
        )  # fmt: skip
        return int(document["iteration"])


def folder_of(run: Path) -> Path:
    """Where batches and weights lie while a run goes on."""
    return run / "learner"


def player_of(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the next batch is played with, of the newest checkpoint: "policy", and "student" where there is one; {}: none."""
    from safetensors.torch import load_file

    newest = latest_checkpoint(run)
    paths = [] if newest is None else newest.glob(f"{_PLAYER}*.safetensors")
    return {path.stem.removeprefix(_PLAYER): dict(load_file(path)) for path in paths}


def write_batch(path: Path, batch: OnPolicyBatch, job: dict[str, Any]) -> None:
    """A batch and what to do with it (JSON types), as one safetensors file.

    Raises:
        OSError: a full disk.
    """
    from safetensors.torch import save

    names = [entry.name for entry in fields(batch) if entry.name != "observation"]
    tensors = {name: getattr(batch, name) for name in names}
    tensors |= {f"{_OBSERVATION}{key}": value for key, value in batch.observation.arrays().items()}
    write_synced(path, save(_plain(tensors), metadata={"job": json.dumps(job)}))


def read_batch(path: Path, device: torch.device) -> OnPolicyBatch:
    """Inverse of `write_batch`."""
    from safetensors.torch import load_file

    tensors = load_file(path, device=str(device))
    seen = {name.removeprefix(_OBSERVATION): tensors.pop(name) for name in list(tensors) if _OBSERVATION in name}
    return OnPolicyBatch(**tensors, observation=Observation.from_arrays(seen))


def read_job(path: Path) -> dict[str, Any]:
    """What is to be done with a batch."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        job: dict[str, Any] = json.loads(file.metadata()["job"])
    return job


def _copy(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors wants them: on the CPU, none sharing memory with another."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def failed(error: Exception) -> bytes:
    """Instead of an answer: why there is none."""
    said = {
        "where": "learner",
        "expected": "an update",
        "got": f"{type(error).__name__}: {error}"[:2000],
        "hint": "See above.",
    }
    if isinstance(error, RobotRlError):
        said = {name: str(getattr(error, name))[:8000] for name in said}
    return json.dumps({"error": said}).encode()


def main(words: list[str]) -> int:
    """Learn until the parent is gone.

    Args:
        words: number of the socket's file descriptor.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    channel, plain = parent_socket(words)
    parent = os.getppid()
    os.nice(NICE)
    try:
        config = convert_config(LearningConfig, plain["config"], where="learner")
        torch.set_num_threads(config.threads)
        side = LearnerSide(config, Path(plain["run"]))
        channel.send(b"{}")
        while True:
            got = receive(channel, 1.0)
            if got is None:
                continue
            if not got[0] or os.getppid() != parent:
                return 0  # what is still asked for is for the run that goes on from the newest checkpoint
            channel.send(json.dumps(side.handle(json.loads(got[0]))).encode())
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:  # the parent must hear of it, whatever it is
        log.exception("the learner ends")
        channel.send(failed(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
