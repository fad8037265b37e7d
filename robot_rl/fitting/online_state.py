"""Everything an online run depends on from one iteration to the next: saved, restored, rolled back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robot_rl.algorithms.statistics import Proportion, proportion
from robot_rl.fitting.online_update import Learner
from robot_rl.fitting.student import JointStudent
from robot_rl.rollout import EpisodeRecord
from robot_rl.runs.checkpoint import Checkpoint, flatten_optimizer, restore_optimizer

CONFIDENCE = 0.999


@dataclass
class OnlineState:
    """See the module.

    Attributes:
        learner: what learns.
        student: follows it, or None.
        iteration, env_steps, episodes, roll_backs: so far.
        last_score: of the last batch; behind a roll-back that of the best policy, which is the one at hand again.
        best_score: of the best policy.
        best: weights of the policy that reached it.
        best_student: of the student that followed it then.
        finished: the last batch has been played.
    """

    learner: Learner
    student: JointStudent | None
    iteration: int = 0
    env_steps: int = 0
    episodes: int = 0
    roll_backs: int = 0
    last_score: Proportion | None = None
    best_score: Proportion | None = None
    best: dict[str, torch.Tensor] | None = None
    best_student: dict[str, torch.Tensor] | None = None
    finished: bool = False

    def count(self, records: Sequence[EpisodeRecord], score: Proportion) -> dict[str, float]:
        """Add a batch to the totals; returns its metrics."""
        self.env_steps += sum(record.length for record in records)
        self.episodes += len(records)
        self.last_score = score
        return {"success_once": score.rate, "env_steps": self.env_steps, "episodes": self.episodes, "rolled_back": 0.0}

    def has_fallen(self, score: Proportion) -> bool:
        """Whether the batch's 99.9 % Wilson interval lies below that of the best policy.

        The best of many noisy batches is too good, so 95 % would call one batch in a few a fall.
        """
        if self.best_score is None:
            return False
        now, best = (proportion(which.k, which.n, confidence=CONFIDENCE) for which in (score, self.best_score))
        return now.high < best.low

    def remember(self, score: Proportion) -> None:
        """Keep the weights when no policy had a higher lower bound."""
        if self.best_score is None or score.low >= self.best_score.low:
            self.best_score, self.best = score, copy.deepcopy(self.learner.policy.state_dict())
            self.best_student = None if self.student is None else copy.deepcopy(self.student.average.state_dict())

    def roll_back(self) -> None:
        """Restore the best weights with a fresh optimiser at half the learning rate: its moments led downhill.

        The student goes back with them: else a run that ends here would save a head of the policy that fell.
        """
        assert self.best is not None
        self.learner.policy.load_state_dict(self.best)
        self.learner.optimizer.state.clear()
        self.learner.shrink()
        if self.student is not None and self.best_student is not None:
            self.student.go_back(self.best_student)
        self.roll_backs += 1
        self.last_score = self.best_score

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """For a checkpoint: "policy" is the one to use."""
        learner = self.learner
        out: dict[str, Mapping[str, torch.Tensor]] = {
            "policy": learner.policy.state_dict(),
            "critic": learner.critic.state_dict(),
            "optimizer": flatten_optimizer(learner.optimizer),
            "value_optimizer": flatten_optimizer(learner.value_optimizer),
            "random": {"generator": learner.generator.get_state()},
        }
        if self.best is not None:
            out["best"] = self.best
        if self.best_student is not None:
            out["best_student"] = self.best_student
        return out | ({} if self.student is None else self.student.tensors())

    def document(self) -> dict[str, Any]:
        """Counters for a checkpoint, JSON types."""
        names = ("iteration", "env_steps", "episodes", "roll_backs", "finished")
        best = self.best_score and [self.best_score.k, self.best_score.n]
        last = self.last_score and [self.last_score.k, self.last_score.n]
        return {name: getattr(self, name) for name in names} | {"best_score": best, "last_score": last}

    def restore(self, saved: Checkpoint) -> None:
        """Go on where `saved` was written."""
        learner, tensors = self.learner, saved.tensors
        learner.policy.load_state_dict(tensors["policy"])
        learner.critic.load_state_dict(tensors["critic"])
        restore_optimizer(learner.optimizer, tensors["optimizer"])
        restore_optimizer(learner.value_optimizer, tensors["value_optimizer"])
        learner.generator.set_state(tensors["random"]["generator"].cpu())  # torch takes no other, even for a GPU's
        self.best, self.best_student = (dict(tensors[n]) if n in tensors else None for n in ("best", "best_student"))
        if self.student is not None:
            self.student.restore(tensors)
        self.count_from(saved.documents["online"])

    def count_from(self, counters: Mapping[str, Any]) -> None:
        """Take the counters of a `document`."""
        for name in ("iteration", "env_steps", "episodes", "roll_backs", "finished"):
            setattr(self, name, counters[name])
        for name in ("best_score", "last_score"):
            setattr(self, name, proportion(*counters[name]) if counters[name] else None)
