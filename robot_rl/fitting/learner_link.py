"""The player's side of a learner in another process (learner_process.py): the robot never waits for a gradient.

Behind batch n it takes the weights that the update on batch n-1 led to, hands batch n over, and plays on. It waits only where a
batch was played before the update on the one before it was done. A checkpoint is of a whole update, and a batch lies on the disk
until its own: what is killed costs no batch that was played to its end.
"""

from __future__ import annotations

import json
import logging
import shutil
from typing import Any

import torch

from robot_rl.algorithms.statistics import Proportion
from robot_rl.deploy.child_process import Child
from robot_rl.errors import RunError
from robot_rl.fitting.learner_process import WEIGHTS, folder_of, player_of, read_job, write_batch
from robot_rl.fitting.on_policy import OnPolicyBatch
from robot_rl.fitting.online_learning import LearningConfig, LearningParts
from robot_rl.fitting.online_state import OnlineState
from robot_rl.runs.config import config_to_json

log = logging.getLogger(__name__)

START_S = 300.0
_POLL_S = 0.2


class ProcessLearning:
    """See the text of this module, and online_learning.Learning.

    Args:
        state: of the run as it begins or goes on; its policy is what plays, its counters are the run's. What learns is a copy.
        config: see LearningConfig.
        parts: see LearningParts.

    Raises:
        RunError: the learner does not come up.
    """

    def __init__(self, state: OnlineState, config: LearningConfig, parts: LearningParts) -> None:
        self._state, self._config, self._parts = state, config, parts
        self._folder = folder_of(parts.run)
        self._folder.mkdir(exist_ok=True)
        self._newest: dict[str, torch.Tensor] | None = None
        self._pending: dict[str, Any] | None = None  # the job of the update that runs
        self._saves = 0
        if player := player_of(parts.run):
            policy = state.learner.policy
            self._newest = {name: value.clone() for name, value in policy.state_dict().items()}
            policy.load_state_dict(player["policy"])
        plain = {"config": config_to_json(config), "run": str(parts.run)}
        self._child = Child("robot_rl.fitting.learner_process", plain)
        try:
            if (message := self._child.first_message(START_S)) is None:
                raise self._lost()
            _read(message)
            self._go_on()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._child.pid

    def take(self, batch: OnPolicyBatch, score: Proportion, values: dict[str, float]) -> None:
        """See Learning: returns when the batch is handed over and the state's policy has the newest weights."""
        state, env_steps = self._state, self._state.env_steps
        self._join()
        values["weights_age_iterations"] = float(self._newest is not None)
        if state.has_fallen(score):
            log.warning("%s: back to the policy that had %s, with a smaller step", score, state.best_score)
            state.roll_back()
            values["rolled_back"] = 1.0
            state.iteration += 1
            self._newest = None
            self._send({"do": "roll_back"})
            self._receive("roll_back")
        elif state.finished:
            state.iteration += 1
        else:
            moves = state.iteration >= self._config.warmup_iterations
            state.remember(score)
            state.iteration += 1
            name = f"batch_{state.iteration:06d}.safetensors"
            job = {
                "do": "learn", "batch": name, "moves": moves, "age": int(values["weights_age_iterations"]),
                "remember": state.best_score is score, "episodes": len(self._parts.recorder), "env_steps": env_steps,
                "values": {key: float(value) for key, value in values.items()}, "document": state.document(),
            }  # fmt: skip
            write_batch(self._folder / name, batch, job)
            self._hand_over(job)
            return
        self._parts.write_row(env_steps, values)
        self._save(env_steps, state.document())
        if state.finished:
            self._settle()
            self.close()
            shutil.rmtree(self._folder)

    def check(self) -> None:
        """See Learning.

        Raises:
            RunError: it has ended by itself.
        """
        if self._child.exit_code is not None:
            self._receive("its end")

    def drain(self) -> None:
        """See Learning.

        Raises:
            RunError: it can't.
        """
        self._join()
        self._settle()

    def close(self) -> None:
        """See Learning."""
        self._child.close()

    def _go_on(self) -> None:
        """Hand over the batch whose update was cut short, if there is one."""
        state = self._state
        path = self._folder / f"batch_{state.iteration + 1:06d}.safetensors"
        if state.finished or not path.is_file():
            return
        job = read_job(path)
        log.info("learning from %s, which was played before", path)
        if job["remember"]:
            state.best = {name: value.clone() for name, value in state.learner.policy.state_dict().items()}
        state.count_from(job["document"])
        self._hand_over(job)

    def _hand_over(self, job: dict[str, Any]) -> None:
        """The learner begins, and what plays takes the weights that it begins from."""
        self._send({key: job[key] for key in ("do", "batch", "moves", "age", "remember", "episodes")})
        self._pending = job
        if self._newest is not None:
            self._state.learner.policy.load_state_dict(self._newest)
            self._newest = None

    def _join(self) -> None:
        """Wait for the update that runs, and write down what it did."""
        if self._pending is None:
            return
        from safetensors.torch import load_file

        with self._parts.progress.share("waiting for the learner"):
            values = self._receive("learn")["values"]
        job, self._pending = self._pending, None
        self._newest = load_file(self._folder / WEIGHTS, device=str(self._state.learner.policy.device))
        self._parts.write_row(job["env_steps"], job["values"] | values)
        self._save(job["env_steps"], job["document"])

    def _save(self, env_steps: int, document: dict[str, Any]) -> None:
        self._send({"do": "save", "step": env_steps, "document": document, "is_last": bool(document["finished"])})
        self._saves += 1

    def _settle(self) -> None:
        """Wait until every checkpoint is on the disk."""
        while self._saves:
            self._receive("save")

    def _send(self, message: dict[str, Any]) -> None:
        if not self._child.send(json.dumps(message).encode()):
            raise self._lost()

    def _receive(self, kind: str) -> dict[str, Any]:
        """The next answer of a kind; those to "save" before it are taken note of."""
        while True:
            message = self._child.receive(_POLL_S)
            if message is None:
                if self._child.exit_code is not None:
                    raise self._lost()
                continue
            answer = _read(message)
            if answer["do"] == "save":
                self._saves -= 1
                for path in self._folder.glob("batch_*.safetensors"):
                    if int(path.stem.removeprefix("batch_")) <= answer["iteration"]:
                        path.unlink()
            if answer["do"] == kind:
                return answer

    def _lost(self) -> RunError:
        code = self._child.exit_code
        return RunError(
            "learner", expected="a process that learns while the robot plays", got=f"its end (exit code {code})",
            hint=f"Its messages are above. Go on with resume={self._parts.run}: batches that were played are learned from then.",
        )  # fmt: skip


def _read(message: bytes) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(message)
    if "error" in plain:
        raise RunError(**plain["error"])
    return plain
