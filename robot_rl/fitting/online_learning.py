"""What learns in an online run: put up, driven and saved. Here between two batches; learner_link.py: while the next is played."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.rewards import RewardConfig
from robot_rl.algorithms.statistics import Proportion
from robot_rl.contracts import DenoisingPolicy
from robot_rl.errors import PolicyError
from robot_rl.fitting.handover import check_handover, handover_document
from robot_rl.fitting.kept_episodes import KeptEpisodes
from robot_rl.fitting.on_policy import OnPolicyBatch
from robot_rl.fitting.online_state import OnlineState
from robot_rl.fitting.online_update import (
    Learner,
    OnlinePpoConfig,
    UpdateConfig,
    ValueConfig,
    improve,
    let_encoder_learn,
    numbers_to_log,
)
from robot_rl.fitting.student import JointStudent, StudentConfig
from robot_rl.runs.adopted import require_trained_here
from robot_rl.runs.checkpoint import latest_checkpoint, load_checkpoint, load_policy, save_checkpoint
from robot_rl.runs.config import build
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress
from robot_rl.runs.training import pick_device

log = logging.getLogger(__name__)

Anchor = Callable[[Any, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class LearningConfig:
    """The part of `online.OnlineConfig` that learning needs; fields mean what they mean there, and defaults are there."""

    policy: str
    critic: dict[str, Any]
    intervener: dict[str, Any]
    demonstrations: list[str]
    imitate_successes: bool
    warmup_iterations: int
    gamma: float
    trace: float
    reward: RewardConfig
    ppo: OnlinePpoConfig
    value: ValueConfig
    student: StudentConfig
    train_encoder: bool
    sigma_min: float | None
    max_kl: float
    device: str
    threads: int
    seed: int

    @classmethod
    def of(cls, config: Any) -> LearningConfig:
        """That of a stage's configuration."""
        return cls(**{entry.name: getattr(config, entry.name) for entry in fields(cls)})


@dataclass(frozen=True)
class LearningParts:
    """What stands around what learns.

    Attributes:
        run: the run directory.
        recorder: episodes, and what is imitated of them.
        metrics: rows of iterations, names without "online/".
        progress: gets shares of the time.
    """

    run: Path
    recorder: KeptEpisodes
    metrics: MetricsWriter
    progress: Progress

    def write_row(self, env_steps: int, values: Mapping[str, float]) -> None:
        """A finished iteration's row."""
        self.metrics.write(env_steps, {f"online/{name}": float(value) for name, value in values.items()})


@runtime_checkable
class Learning(Protocol):
    """Takes every batch that was played, and decides with which weights the next one is."""

    def take(self, batch: OnPolicyBatch, score: Proportion, values: dict[str, float]) -> None:
        """A batch, its success, and its metrics so far; the state has counted it, and knows whether it is the last."""
        ...

    def check(self) -> None:
        """Raise what ended the learner, if anything did; cheap, asked between episodes."""
        ...

    def drain(self) -> None:
        """Wait until everything is learned and saved: the run is about to end."""
        ...

    def close(self) -> None:
        """End it; also twice."""
        ...


class InlineLearning:
    """Learns between two batches, in this process; see Learning.

    Args:
        state: of the run.
        documents: of its checkpoints.
        config: see LearningConfig.
        parts: see LearningParts.
    """

    def __init__(
        self, state: OnlineState, documents: dict[str, Any], config: LearningConfig, parts: LearningParts
    ) -> None:
        self._state, self._documents, self._config, self._parts = state, documents, config, parts

    def take(self, batch: OnPolicyBatch, score: Proportion, values: dict[str, float]) -> None:
        """See Learning: the state's weights have moved, and the checkpoint is there, when this returns."""
        state, config = self._state, self._config
        if state.has_fallen(score):
            log.warning("%s: back to the policy that had %s, with a smaller step", score, state.best_score)
            state.roll_back()
            values["rolled_back"] = 1.0
        elif not state.finished:
            state.remember(score)
            with self._parts.progress.share("learning"):
                moves = state.iteration >= config.warmup_iterations
                values |= learn(state, batch, config=config, moves=moves, anchor=self._parts.recorder.anchor())
        state.iteration += 1
        self._parts.write_row(state.env_steps, values)
        save_learning(
            self._parts.run, step=state.env_steps, tensors=state.tensors(), student=state.student,
            documents=self._documents | {"online": state.document()},
        )  # fmt: skip

    def check(self) -> None:
        """See Learning; nothing runs beside."""

    def drain(self) -> None:
        """See Learning; nothing runs beside."""

    def close(self) -> None:
        """See Learning; nothing runs beside."""


def learn(
    state: OnlineState, batch: OnPolicyBatch, *, config: LearningConfig, moves: bool, anchor: Anchor | None,
    drawn_by: Any = None,
) -> dict[str, float]:  # fmt: skip
    """One update of V, policy and student; returns metrics, names without prefix.

    Args:
        state: its learner and student are changed in place.
        batch: whole episodes.
        config: of the run.
        moves: False while V warms up.
        anchor: imitation loss, or None.
        drawn_by: see online_update.improve.
    """
    update = UpdateConfig(config.gamma, config.trace, config.ppo, config.value, config.max_kl, config.train_encoder)
    numbers = improve(state.learner, batch, config=update, move_policy=moves, anchor=anchor, drawn_by=drawn_by)
    values = numbers_to_log(numbers)
    if state.student is not None and moves:
        values["student_mse"] = state.student.learn(state.learner.policy, batch.observation)
    return values


def start_learning(config: LearningConfig, run: Path) -> tuple[OnlineState, dict[str, Any]]:
    """Policy, V, optimisers and student, as they begin or as the newest checkpoint of the run has them, and documents.

    Raises:
        PolicyError, RunError: no such policy, one that can't be improved so, or another hand-over.
    """
    device = pick_device(config.device)
    loaded, spec, saved = load_policy(Path(config.policy), device=str(device))
    require_trained_here(saved, where=config.policy)
    if not isinstance(loaded, DenoisingPolicy):
        raise PolicyError(
            config.policy, expected="a policy with denoising steps (a run of imitate, offline or distill_onestep)",
            got=type(loaded).__name__, hint="Give another run.",
        )  # fmt: skip
    policy = loaded.eval().with_mode(SamplingMode.eta1, sigma_min=config.sigma_min)  # type: ignore[attr-defined]
    is_head = policy.sampler.num_steps == 1
    imitates = config.demonstrations or config.intervener or config.imitate_successes
    if is_head and (imitates or config.student.num_steps):
        raise PolicyError(
            config.policy, expected="no demonstrations, intervener, imitate_successes or student with a one-step head",
            got="one of them", hint="A head has no denoising loss to imitate with: improve its teacher, then distil again.",
        )  # fmt: skip
    policy.denoiser.requires_grad_(True)
    let_encoder_learn(policy.encoder, config.train_encoder)
    handover = handover_document(policy, gamma=config.gamma, reward=config.reward)
    if "handover" in saved.documents:
        check_handover(handover, saved.documents["handover"], where=str(saved.path))
    node = saved.documents.get("critic", config.critic)
    torch.manual_seed(config.seed)
    sizes = {"feature_size": policy.encoder.size, "action_size": policy.config.execute * spec.action.size}
    critic = build(node, **sizes).to(device)
    if "critic" in saved.tensors:
        critic.load_state_dict(saved.tensors["critic"])
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    learner = Learner(
        policy, critic, torch.optim.Adam(weights, lr=config.ppo.learning_rate, eps=1e-5),
        torch.optim.Adam(critic.parameters(), lr=config.value.learning_rate, eps=1e-5),
        torch.Generator(device=device).manual_seed(config.seed),
    )  # fmt: skip
    student = JointStudent(policy, config.student, config.seed) if config.student.num_steps else None
    state = OnlineState(learner, student)
    newest = latest_checkpoint(run)
    if newest is not None:
        state.restore(load_checkpoint(newest, device=device))
        log.info("continuing at %d env steps from %s", state.env_steps, newest)
    shared = {name: saved.documents[name] for name in ("spec", "normalizer", "data") if name in saved.documents}
    described = dict(saved.documents["policy"])
    if not is_head:  # a head is deployed without the noise that it explored with
        described["config"] = described["config"] | {"sigma_min": policy.config.sigma_min}
    return state, shared | {
        "policy": described, "critic": node, "handover": handover, "teacher": {"path": config.policy},
    }  # fmt: skip


def save_learning(
    run: Path, *, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], documents: dict[str, Any],
    student: JointStudent | None,
) -> Path:  # fmt: skip
    """The run's checkpoint, and the student's in `student/`, each with what `evaluate` and `export` need.

    Args:
        run: its directory.
        step: env steps.
        tensors: of OnlineState.
        documents: of the checkpoint.
        student: describes the one of `tensors`, or None.
    """
    path = save_checkpoint(run, step=step, tensors=tensors, documents=documents)
    if student is not None:
        (run / "student").mkdir(exist_ok=True)
        shared = {name: documents[name] for name in ("spec", "normalizer", "data") if name in documents}
        save_checkpoint(
            run / "student", step=step, tensors={"policy": tensors["student"]},
            documents=shared | {"policy": student.document(), "teacher": {"path": str(run)}}, keep=1,
        )  # fmt: skip
    return path
