"""A one-step student that follows the policy while it learns online (RL-100: the consistency head is distilled alongside).

After every update the student takes gradient steps of same-noise regression on states that were met, newest policy as
the teacher. So when the stage ends, the head that will be deployed has seen the states of the policy that it copies.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.runs.checkpoint import flatten_optimizer, restore_optimizer
from robot_rl.runs.training import update_average
from robot_rl.types import Observation


@dataclass(frozen=True)
class StudentConfig:
    """Joint distillation.

    Attributes:
        num_steps: gradient steps behind every update of the policy; 0: no student.
        batch_size: decisions a gradient step.
        learning_rate: of AdamW, without schedule.
        mode: deterministic map of the teacher that is copied.
        memory: batches whose states are kept; older ones are forgotten.
    """

    num_steps: int = 0
    batch_size: int = 256
    learning_rate: float = 5e-4
    mode: SamplingMode = SamplingMode.eta0
    memory: int = 10


class JointStudent:
    """The student, its average (what is saved), and the states that it learns on.

    Args:
        policy: teacher as it starts; gives the student's shape and first weights.
        config: see StudentConfig.
        seed: of its batches and noise.
    """

    def __init__(self, policy: Any, config: StudentConfig, seed: int) -> None:
        self.config = config
        self.module = policy.with_mode(config.mode).one_step_student(1).to(policy.device)
        self.average = copy.deepcopy(self.module).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=config.learning_rate, weight_decay=1e-4)
        self.generator = torch.Generator(device=policy.device).manual_seed(seed)
        self.steps = 0
        self._seen: deque[Observation] = deque(maxlen=config.memory)

    def learn(self, policy: Any, observation: Observation) -> float:
        """Take `num_steps` gradient steps towards `policy`; returns the mean squared distance of the last ones.

        Args:
            policy: the teacher as it is now.
            observation: new states (B, To, ...), kept for later.
        """
        teacher = policy.with_mode(self.config.mode)
        self._seen.append(observation)
        arrays = [seen.arrays() for seen in self._seen]
        pool = {key: torch.cat([some[key] for some in arrays]) for key in arrays[0]}
        total = len(next(iter(pool.values())))
        device, losses = self.generator.device, []
        for _step in range(self.config.num_steps):
            rows = torch.randint(total, (self.config.batch_size,), generator=self.generator, device=device)
            chosen = Observation.from_arrays({key: values[rows.to(values.device)] for key, values in pool.items()})
            noise = torch.randn(len(rows), *teacher.noise_shape, generator=self.generator, device=device)
            target = teacher.normalized_action(chosen, noise)
            loss, _ = self.module.loss(chosen, noise, target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.steps += 1
            update_average(self.average, self.module, step=self.steps, ema_max=0.995)
            losses.append(float(loss.detach()))
        recent = losses[-50:]
        return sum(recent) / max(len(recent), 1)

    def go_back(self, average: Mapping[str, torch.Tensor]) -> None:
        """Go on from an earlier average, with a fresh optimiser."""
        self.average.load_state_dict(average)
        self.module.load_state_dict(average)
        self.optimizer.state.clear()

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """For a checkpoint of the run."""
        seen = [observation.arrays() for observation in self._seen]
        return {
            "student": self.average.state_dict(),
            "student_raw": self.module.state_dict(),
            "student_optimizer": flatten_optimizer(self.optimizer),
            "student_random": {"generator": self.generator.get_state(), "steps": torch.tensor(self.steps)},
            "student_seen": {f"{number}.{key}": rows for number, one in enumerate(seen) for key, rows in one.items()},
        }

    def restore(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Inverse of `tensors`."""
        self.average.load_state_dict(tensors["student"])
        self.module.load_state_dict(tensors["student_raw"])
        restore_optimizer(self.optimizer, tensors["student_optimizer"])
        self.generator.set_state(tensors["student_random"]["generator"].cpu())
        self.steps = int(tensors["student_random"]["steps"])
        numbered: dict[int, dict[str, torch.Tensor]] = {}
        for name, rows in tensors["student_seen"].items():
            number, _, key = name.partition(".")
            numbered.setdefault(int(number), {})[key] = rows.to(self.generator.device)
        self._seen.extend(Observation.from_arrays(numbered[number]) for number in sorted(numbered))

    def document(self) -> dict[str, Any]:
        """The student as a checkpoint's "policy" document."""
        kind = type(self.average)
        return {"_target_": f"{kind.__module__}.{kind.__qualname__}", "config": self.average.config.to_json()}
