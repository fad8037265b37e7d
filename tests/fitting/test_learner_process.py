"""A learner in another process: what crosses the border, the ratio of older weights, and the same run as a loop that lags by hand."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.rewards import RewardConfig
from robot_rl.algorithms.statistics import proportion
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.errors import RunError
from robot_rl.fitting.denoising_ppo import Decisions
from robot_rl.fitting.kept_episodes import KeptEpisodes
from robot_rl.fitting.learner_link import ProcessLearning
from robot_rl.fitting.learner_process import LearnerSide, failed, folder_of, read_batch, read_job, write_batch
from robot_rl.fitting.on_policy import OnPolicyBatch, play_batch
from robot_rl.fitting.online_learning import LearningConfig, LearningParts, learn, start_learning
from robot_rl.fitting.online_update import OnlinePpoConfig, ValueConfig, log_prob_of
from robot_rl.fitting.student import StudentConfig
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.runs.checkpoint import save_checkpoint
from robot_rl.runs.config import convert_config
from robot_rl.runs.directory import read_json
from robot_rl.runs.metrics import MetricsWriter, read_metrics
from robot_rl.runs.progress import Progress
from robot_rl.stages.online import OnlineConfig

EPISODES, EXECUTE, GAMMA = 6, 2, 0.9


@pytest.fixture
def config(tmp_path: Path) -> LearningConfig:
    """Of a run that starts from a policy that has learned nothing."""
    torch.manual_seed(0)
    spec = make_env(PointReachConfig(), num_envs=1, history=1).spec
    ranges = {
        key: torch.tensor([[-1.0] * item.shape[0], [1.0] * item.shape[0]])
        for key, item in (*spec.observation.items(), ("action", spec.action))
    }
    modes = {key: NormalizerMode.range if key == "action" else NormalizerMode.standard for key in ranges}
    normalizer = Normalizer.fit(ranges, modes)
    plain = DiffusionPolicyConfig(
        mode=SamplingMode.eta1, num_steps=3, horizon=4, execute=EXECUTE, hidden_width=16, level_embedding=8
    )
    policy = DiffusionPolicy(plain, spec, normalizer)
    (tmp_path / "start").mkdir()
    target = f"{DiffusionPolicy.__module__}.{DiffusionPolicy.__qualname__}"
    save_checkpoint(
        tmp_path / "start", step=1, tensors={"policy": policy.state_dict()},
        documents={
            "policy": {"_target_": target, "config": plain.to_json()}, "spec": spec.to_json(),
            "normalizer": normalizer.to_json(),
        },
    )  # fmt: skip
    online = OnlineConfig(
        policy=str(tmp_path / "start" / "checkpoints" / "last"), gamma=GAMMA, warmup_iterations=1,
        critic={"_target_": "robot_rl.policies.critics.build_critic", "hidden_width": 16},
        ppo=OnlinePpoConfig(epochs=2, batch_size=16, learning_rate=1e-3), value=ValueConfig(epochs=2, batch_size=32),
        student=StudentConfig(num_steps=2, batch_size=16), max_kl=50.0,
    )  # fmt: skip
    return LearningConfig.of(online)


class SameProcess:
    """In place of child_process.Child: the learner here, behind the same words. Its updates are done when it is asked."""

    sides: ClassVar[list[LearnerSide]] = []

    def __init__(self, module: str, plain: dict[str, Any]) -> None:
        assert module == "robot_rl.fitting.learner_process"
        plain = json.loads(json.dumps(plain))
        self.side = LearnerSide(convert_config(LearningConfig, plain["config"], where="test"), Path(plain["run"]))
        self.sides.append(self.side)
        self.answers, self.exit_code = [b"{}"], None

    def send(self, message: bytes) -> bool:
        try:
            self.answers.append(json.dumps(self.side.handle(json.loads(message))).encode())
        except RunError as error:
            self.answers.append(failed(error))
        return True

    def receive(self, wait_s: float) -> bytes | None:
        return self.answers.pop(0) if self.answers else None

    def first_message(self, wait_s: float) -> bytes | None:
        return self.receive(wait_s)

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner in this process."""
    monkeypatch.setattr("robot_rl.fitting.learner_link.Child", SameProcess)


def play(policy: Any, iteration: int) -> tuple[OnPolicyBatch, list[Any]]:
    env = make_env(PointReachConfig(max_episode_steps=6), num_envs=3, history=1)
    noise = NoiseSource(rule=NoiseRule.seeded, seed=3, shape=policy.noise_shape)
    seeds = range(iteration * EPISODES, (iteration + 1) * EPISODES)
    return play_batch(env, policy, seeds, noise=noise, gamma=GAMMA, reward=RewardConfig())


@contextmanager
def learning_in(config: LearningConfig, run: Path) -> Iterator[tuple[Any, ProcessLearning]]:
    """A run's state and the process that learns for it."""
    run.mkdir(exist_ok=True)
    state, _ = start_learning(config, run)
    with (
        KeptEpisodes(state.learner.policy, [], None, successes=False, imitates=False) as recorder,
        MetricsWriter(run / "metrics.jsonl", resume_step=state.env_steps) as metrics,
        Progress("test", total=100, use_bar=False) as progress,
    ):
        learning = ProcessLearning(state, config, LearningParts(run, recorder, metrics, progress))
        try:
            yield state, learning
        finally:
            learning.close()


def one(state: Any, learning: ProcessLearning, rate: float = 0.5, *, is_last: bool = False) -> OnPolicyBatch:
    """An iteration, as the stage has it, but for the success, which is what the test says (of 100)."""
    batch, records = play(state.learner.policy, state.iteration)
    score = proportion(round(100 * rate), 100)
    values = state.count(records, score)
    state.finished = is_last
    learning.take(batch, score, values)
    return batch


def weights(policy: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def lagging(config: LearningConfig, run: Path, count: int) -> tuple[list[dict[str, torch.Tensor]], Any]:
    """The weights that play each batch, and what learned, of a loop in this process that lags by one update."""
    run.mkdir()
    state, _ = start_learning(config, run)
    learner, player = state.learner, copy.deepcopy(state.learner.policy)
    played = []
    for iteration in range(count):
        played.append(weights(player))
        batch, _ = play(player, iteration)
        drawn_by, newest = copy.deepcopy(player), weights(learner.policy)
        learn(
            state, batch, config=config, moves=iteration >= 1, anchor=None,
            drawn_by=drawn_by if iteration > 0 else None,
        )  # fmt: skip
        player.load_state_dict(newest)
    return played, state


@pytest.mark.usefixtures("here")
def test_it_is_the_loop_that_lags_by_one_update(config: LearningConfig, tmp_path: Path) -> None:
    expected, reference = lagging(config, tmp_path / "by_hand", 4)
    run = tmp_path / "run"
    with learning_in(config, run) as (state, learning):
        for iteration in range(4):
            assert same(weights(state.learner.policy), expected[iteration]), iteration
            one(state, learning)
        learning.drain()
    saved = run / "checkpoints" / "last"
    assert same(load_file(saved / "policy.safetensors"), reference.learner.policy.state_dict())
    assert same(load_file(saved / "critic.safetensors"), reference.learner.critic.state_dict())
    assert same(load_file(saved / "student.safetensors"), reference.student.average.state_dict())
    assert [row["online/weights_age_iterations"] for row in read_metrics(run / "metrics.jsonl")] == [0, 1, 1, 1]
    # It moved: else the lag could not be seen.
    assert not same(expected[3], expected[0])
    assert same(expected[1], expected[0])


@pytest.mark.usefixtures("here")
def test_what_is_saved_at_the_end_was_played(config: LearningConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with learning_in(config, run) as (state, learning):
        for _ in range(3):
            one(state, learning)
        played = weights(state.learner.policy)
        one(state, learning, is_last=True)
    assert same(load_file(run / "checkpoints" / "last" / "policy.safetensors"), played)
    assert read_json(run / "checkpoints" / "last" / "online.json")["finished"] is True
    assert len(read_metrics(run / "metrics.jsonl")) == 4
    assert not folder_of(run).exists()


@pytest.mark.usefixtures("here")
def test_a_fall_brings_the_best_weights_back_on_both_sides(config: LearningConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with learning_in(config, run) as (state, learning):
        learner = SameProcess.sides[-1].state.learner
        best = weights(state.learner.policy)
        for _ in range(3):  # the first update fits V alone, the second one's weights play the fourth batch
            one(state, learning, 1.0)
        assert not same(weights(state.learner.policy), best)
        state.best, state.best_score = best, proportion(100, 100)
        SameProcess.sides[-1].state.best = best
        student, head = SameProcess.sides[-1].state.student, SameProcess.sides[-1].state.best_student
        assert student is not None
        assert head is not None
        one(state, learning, 0.1)
        assert same(weights(state.learner.policy), best)
        assert same(weights(learner.policy), best)
        assert same(student.average.state_dict(), head)
        assert learner.optimizer.param_groups[0]["lr"] == config.ppo.learning_rate / 2
        one(state, learning, 0.9)
        learning.drain()
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["online/rolled_back"] for row in rows] == [0, 0, 0, 1, 0]
    # What plays behind the fall is what learns: the batch is not old.
    assert [row["online/weights_age_iterations"] for row in rows] == [0, 1, 1, 1, 0]
    assert same(load_file(run / "checkpoints" / "last" / "player_policy.safetensors"), best)


def test_a_killed_learner_ends_the_run_and_its_batch_is_learned_from_later(
    config: LearningConfig, tmp_path: Path
) -> None:
    expected, reference = lagging(config, tmp_path / "by_hand", 4)
    run = tmp_path / "run"
    with learning_in(config, run) as (state, learning):
        for _ in range(2):
            one(state, learning)
        learning.drain()  # the checkpoint of iteration 2 is there
        os.kill(learning.pid, signal.SIGSTOP)  # in the middle of the next one
        one(state, learning)
        os.kill(learning.pid, signal.SIGKILL)
        deadline_s = time.monotonic() + 60
        while learning._child.exit_code is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        with pytest.raises(RunError, match="resume="):
            learning.check()
        with pytest.raises(RunError, match="exit code -9"):
            learning.drain()
    with learning_in(config, run) as (state, learning):
        assert state.iteration == 3
        assert same(weights(state.learner.policy), expected[3])
        one(state, learning)
        learning.drain()
    assert same(load_file(run / "checkpoints" / "last" / "policy.safetensors"), reference.learner.policy.state_dict())
    steps = [row["online/episodes"] for row in read_metrics(run / "metrics.jsonl")]
    assert steps == [EPISODES * (number + 1) for number in range(4)]


@pytest.mark.usefixtures("here")
def test_what_the_learner_says_reaches_the_run(config: LearningConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with learning_in(config, run) as (state, learning):
        batch, records = play(state.learner.policy, 0)
        broken = copy.copy(batch)
        object.__setattr__(broken, "reward", torch.full_like(batch.reward, float("nan")))
        score = proportion(1, EPISODES)
        learning.take(broken, score, state.count(records, score))
        with pytest.raises(RunError, match="finite loss"):
            learning.drain()


def test_a_batch_crosses_whole(config: LearningConfig, tmp_path: Path) -> None:
    state, _ = start_learning(config, tmp_path / "none")
    batch, _ = play(state.learner.policy, 0)
    write_batch(tmp_path / "batch.safetensors", batch, {"do": "learn", "values": {"x": 1.5}})
    again = read_batch(tmp_path / "batch.safetensors", torch.device("cpu"))
    for entry in fields(batch):
        if entry.name != "observation":
            assert torch.equal(getattr(batch, entry.name), getattr(again, entry.name)), entry.name
    assert same(dict(batch.observation.arrays()), dict(again.observation.arrays()))
    assert read_job(tmp_path / "batch.safetensors") == {"do": "learn", "values": {"x": 1.5}}
    header = (tmp_path / "batch.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    json.loads(header[8 : 8 + length])  # a header of JSON and plain numbers behind it: nothing to unpickle


def test_the_density_is_that_of_the_weights_that_drew(config: LearningConfig, tmp_path: Path) -> None:
    """Against torch.distributions, over the executed actions alone."""
    state, _ = start_learning(config, tmp_path / "none")
    policy = state.learner.policy
    batch, _ = play(policy, 0)
    decisions = Decisions(batch.feature, batch.latents, torch.zeros(len(batch)))
    found = log_prob_of(policy, decisions, config.ppo)
    with torch.no_grad():
        for step in range(policy.sampler.num_steps):
            mean, std = policy.reverse_step(batch.latents[:, step], step, batch.feature)
            normal = torch.distributions.Normal(mean, std)
            wanted = normal.log_prob(batch.latents[:, step + 1])[:, :EXECUTE].sum((1, 2))
            torch.testing.assert_close(found[:, step], wanted, rtol=1e-4, atol=1e-4)
