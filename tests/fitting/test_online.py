"""Online PPO's parts: episodes as decisions, GAE at limits and take-overs, human actions, hand-over, roll-back."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.rewards import RewardConfig
from robot_rl.algorithms.statistics import proportion
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.errors import DataError, PolicyError
from robot_rl.fitting.demonstrations import Imitated, human_segments
from robot_rl.fitting.denoising_ppo import decision_kl
from robot_rl.fitting.handover import check_handover, check_reproduced, handover_document
from robot_rl.fitting.on_policy import ChainActor, OnPolicyBatch, advantages, play_batch
from robot_rl.fitting.online_learning import LearningConfig, start_learning
from robot_rl.fitting.online_state import OnlineState
from robot_rl.fitting.online_update import (
    Learner,
    OnlinePpoConfig,
    UpdateConfig,
    ValueConfig,
    fit_value,
    improve,
    values_of,
)
from robot_rl.fitting.student import JointStudent, StudentConfig
from robot_rl.policies.critics import CriticConfig, build_critic
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.runs.checkpoint import Checkpoint, save_checkpoint
from robot_rl.stages.online import OnlineConfig
from robot_rl.types import Episode, Observation, Source

EXECUTE, GAMMA = 3, 0.9


def make_policy(history: int = 1, seed: int = 0) -> DiffusionPolicy:
    torch.manual_seed(seed)
    env = make_env(PointReachConfig(), num_envs=1, history=history)
    config = DiffusionPolicyConfig(
        mode=SamplingMode.eta1, num_steps=4, horizon=4, execute=EXECUTE, history=history, hidden_width=32,
        level_embedding=16,
    )  # fmt: skip
    ranges = {
        key: torch.tensor([[-1.0] * item.shape[0], [1.0] * item.shape[0]])
        for key, item in (*env.spec.observation.items(), ("action", env.spec.action))
    }
    modes = {key: NormalizerMode.range if key == "action" else NormalizerMode.standard for key in ranges}
    return DiffusionPolicy(config, env.spec, Normalizer.fit(ranges, modes)).eval()


def play(policy: Any, num_envs: int, seeds: range = range(6), **other: Any) -> tuple[OnPolicyBatch, list[Episode]]:
    env = make_env(PointReachConfig(max_episode_steps=10), num_envs=num_envs, history=policy.config.history)
    noise = NoiseSource(rule=NoiseRule.seeded, seed=3, shape=policy.noise_shape)
    episodes: list[Episode] = []
    batch, records = play_batch(
        env, policy, seeds, noise=noise, gamma=GAMMA, reward=RewardConfig(),
        on_episode=lambda _record, episode: episodes.append(episode), **other,
    )  # fmt: skip
    assert [record.seed for record in records] == list(seeds)
    return batch, episodes


@pytest.mark.parametrize("history", [1, 2])
def test_a_batch_is_the_same_however_many_envs_play_it(history: int) -> None:
    policy = make_policy(history)
    alone, episodes = play(policy, 1)
    together, _ = play(policy, 4)
    assert len(alone) == sum(-(-len(episode) // EXECUTE) for episode in episodes)
    for name in ("reward", "executed", "terminated", "truncated", "human", "episode"):
        assert torch.equal(getattr(alone, name), getattr(together, name)), name
    for name in ("feature", "latents", "next_feature"):
        torch.testing.assert_close(getattr(alone, name), getattr(together, name))


def test_decisions_hold_what_was_played_and_where_it_led() -> None:
    policy = make_policy(history=2)
    batch, episodes = play(policy, 3)
    row = 0
    for episode in episodes:
        frames = torch.from_numpy(
            np.concatenate([episode.observation["state"], episode.final_observation["state"][None]])
        )
        for step in range(0, len(episode), EXECUTE):
            count = min(EXECUTE, len(episode) - step)
            assert int(batch.executed[row]) == count
            played = policy.physical_action(batch.latents[row : row + 1, -1])[0, :count]
            np.testing.assert_allclose(played.numpy(), episode.action[step : step + count], atol=1e-6)
            seen = torch.stack([frames[max(step - 1, 0)], frames[step]])
            torch.testing.assert_close(batch.observation.arrays()["state"][row], seen)
            behind = step + count
            led_to = torch.stack([frames[behind - 1], frames[behind]])
            encoded = policy.encode(Observation(proprio=led_to[None, :, :2], state=led_to[None]))
            torch.testing.assert_close(batch.next_feature[row], encoded[0])
            powers = GAMMA ** np.arange(count)
            assert float(batch.reward[row]) == pytest.approx(float((powers * episode.reward[step:behind]).sum()))
            assert bool(batch.terminated[row]) == (behind == len(episode) and episode.terminated)
            assert bool(batch.truncated[row]) == (behind == len(episode) and episode.truncated)
            row += 1
    assert row == len(batch)


def hand_batch(**changes: Any) -> OnPolicyBatch:
    """Two episodes of two and three decisions; only what GAE reads means something."""
    rows = 5
    values: dict[str, Any] = {
        "feature": torch.zeros(rows, 4), "latents": torch.zeros(rows, 2, 1, 1), "next_feature": torch.zeros(rows, 4),
        "reward": torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]), "executed": torch.tensor([2, 1, 2, 2, 2]),
        "terminated": torch.tensor([False, True, False, False, False]),
        "truncated": torch.tensor([False, False, False, False, True]), "human": torch.zeros(rows, dtype=torch.bool),
        "episode": torch.tensor([0, 0, 1, 1, 1]),
        "observation": Observation(proprio=torch.zeros(rows, 1, 2)),
    }  # fmt: skip
    return OnPolicyBatch(**(values | changes))


def test_gae_by_hand_at_a_termination_a_time_limit_and_a_take_over() -> None:
    value = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1])
    behind = torch.tensor([0.4, 9.0, 0.2, 0.1, 0.6])
    advantage, returns = advantages(hand_batch(), value, behind, gamma=0.5, trace=0.5)
    # Episode 0: the last decision ends the task (V behind it, 9, must not count); discount 0.5^2 between decisions.
    second = 1.0 - 0.4
    first = 0.25 * 0.4 - 0.5 + 0.25 * 0.5 * second
    # Episode 1: the time limit bootstraps from the final observation.
    fifth = 0.25 * 0.6 - 0.1
    fourth = 0.25 * 0.1 - 0.2 + 0.125 * fifth
    third = 0.25 * 0.2 - 0.3 + 0.125 * fourth
    torch.testing.assert_close(advantage, torch.tensor([first, second, third, fourth, fifth]))
    torch.testing.assert_close(returns, advantage + value)
    # A human comes in behind decision 3: it is bootstrapped there, and nothing of what follows reaches it.
    cut, _ = advantages(
        hand_batch(truncated=torch.tensor([False, False, True, False, True])), value, behind, gamma=0.5, trace=0.5
    )
    assert float(cut[2]) == pytest.approx(0.25 * 0.2 - 0.3)
    torch.testing.assert_close(cut[3:], advantage[3:])


class Human:
    """Takes over in every episode from env step `first` to `last`, with one known action."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.step: dict[int, int] = {}

    def take_over(
        self, observation: Observation, *, episode_seeds: np.ndarray, new_episode: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        steps = np.array([self.step.get(seed, 0) for seed in episode_seeds.tolist()])
        for seed, step in zip(episode_seeds.tolist(), steps.tolist(), strict=True):
            self.step[seed] = step + 1
        actions = np.full((len(steps), 2), 0.25, dtype=np.float32)
        return (self.first <= steps) & (steps < self.last), actions


def test_human_actions_are_labelled_and_leave_the_ratio_loss() -> None:
    policy = make_policy()
    batch, episodes = play(policy, 2, intervener=Human(4, 6))
    row = 0
    for episode in episodes:
        human = np.asarray(episode.source) == Source.intervention
        assert human.nonzero()[0].tolist() == [step for step in (4, 5) if step < len(episode)]
        np.testing.assert_array_equal(episode.action[human], 0.25)
        # Decisions start at 0, 3, then where the human comes in (4) and leaves (6), and every third step again.
        starts = [step for step in (0, 3, 4, 6, 9) if step < len(episode)]
        ends = [*starts[1:], len(episode)]
        for start, end in zip(starts, ends, strict=True):
            assert int(batch.executed[row]) == end - start
            assert bool(batch.human[row]) == (start == 4)
            assert bool(batch.truncated[row]) == (
                (start == 3 and end == 4 and len(episode) > 4) or (end == len(episode) and episode.truncated)
            )
            row += 1
    assert row == len(batch)

    learner = make_learner(policy)
    before = [parameter.clone() for parameter in policy.denoiser.parameters()]
    all_human = replace(batch, human=torch.ones_like(batch.human))
    improve(learner, all_human, config=UPDATE)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.denoiser.parameters(), strict=True))
    # What the human did in his own rows is irrelevant to the ratio loss: other latents there give the same update.
    changed = replace(batch, latents=torch.where(batch.human[:, None, None, None], 7.0, batch.latents))
    one, other = make_policy(), make_policy()
    improve(make_learner(one), batch, config=UPDATE)
    improve(make_learner(other), changed, config=UPDATE)
    assert all(torch.equal(a, b) for a, b in zip(one.denoiser.parameters(), other.denoiser.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.denoiser.parameters(), before, strict=True))


def test_a_human_takes_over_from_a_policy_on_another_device() -> None:
    """The meta device stands in for a GPU: what is mixed with tensors of the CPU is refused there as well."""
    plain, meta = make_policy(), torch.device("meta")
    policy = SimpleNamespace(
        config=plain.config, device=meta, sampler=plain.sampler, physical_action=lambda final: final,
        encode=lambda observation: observation.state.flatten(1), reverse_step=lambda latent, *_: (latent, 0.1),
    )  # fmt: skip
    noise = NoiseSource(rule=NoiseRule.seeded, seed=0, shape=plain.noise_shape)
    seen = Observation(proprio=torch.zeros(2, 1, 2), state=torch.zeros(2, 1, 4))
    chunk = ChainActor(policy, noise, Human(0, 1)).act(
        seen, episode_seeds=np.arange(2), new_episode=np.ones(2, dtype=bool)
    )
    assert (chunk.actions.device, tuple(chunk.actions.shape)) == (meta, (2, 1, 2))


def test_v_is_the_policys_own_and_learns_nothing_of_what_the_human_achieved() -> None:
    """Else his success would come back, through V of the state where he came in, to what made him come in."""
    policy = make_policy()
    batch, _ = play(policy, 2, intervener=Human(4, 6))
    assert batch.human.any()
    helped = replace(batch, reward=torch.where(batch.human, 100.0, batch.reward))
    one, other = make_learner(policy), make_learner(policy)
    improve(one, batch, config=UPDATE, move_policy=False)
    improve(other, helped, config=UPDATE, move_policy=False)
    torch.testing.assert_close(values_of(one.critic, batch.feature), values_of(other.critic, batch.feature))


def test_demonstrations_without_a_success_are_refused(tmp_path: Path) -> None:
    policy = make_policy()
    _, episodes = play(policy, 2)
    with EpisodeStore.create(tmp_path / "lost.zarr", policy.spec, metadata={}) as store:
        for episode in episodes:
            store.append(replace(episode, success=np.zeros(len(episode), bool)))
    with pytest.raises(DataError, match=r"lost\.zarr.*6 episodes, none successful"):
        Imitated(policy, [str(tmp_path / "lost.zarr")])


def test_the_imitation_term_sees_the_humans_stretches_and_nothing_behind_them() -> None:
    policy = make_policy()
    _, episodes = play(policy, 2, intervener=Human(4, 6))
    long = [episode for episode in episodes if len(episode) > 6]
    assert long
    (part,) = human_segments(long[0])
    assert (len(part), part.terminated, part.truncated) == (2, False, False)
    np.testing.assert_array_equal(part.action, long[0].action[4:6])
    np.testing.assert_array_equal(part.final_observation["state"], long[0].observation["state"][6])
    imitated = Imitated(policy)
    assert imitated.num_windows == 0
    steps = imitated.add(episodes)
    assert steps == imitated.num_windows == sum(int((e.source == Source.intervention).sum()) for e in episodes)
    policy.denoiser.requires_grad_(True)
    optimizer = torch.optim.Adam(policy.denoiser.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        imitated.loss(policy, generator).backward()
        optimizer.step()
    rows = play(policy, 2)[0]
    noise = torch.randn(len(rows), *policy.noise_shape, generator=generator)
    learned = policy.physical_action(policy.sample(rows.feature, noise))[:, :1]
    assert float((learned - 0.25).abs().mean()) < 0.1


def test_self_imitation_takes_whole_successful_episodes_alone() -> None:
    policy = make_policy()
    _, episodes = play(policy, 4)
    episodes = [replace(e, success=np.arange(len(e)) == len(e) - 1) if i % 2 else e for i, e in enumerate(episodes)]
    won = [episode for episode in episodes if episode.success.any()]
    assert 0 < len(won) < len(episodes)
    imitated = Imitated(policy)
    assert imitated.add(episodes) == 0
    assert imitated.add(episodes, successes=True) == sum(len(episode) for episode in won) == imitated.num_windows


UPDATE = UpdateConfig(
    gamma=GAMMA, trace=0.95, max_kl=1e9, ppo=OnlinePpoConfig(batch_size=16, epochs=2, learning_rate=1e-3, kl_stop=10.0),
    value=ValueConfig(epochs=2, batch_size=16),
)  # fmt: skip


def make_learner(policy: Any) -> Learner:
    torch.manual_seed(1)
    critic = build_critic(CriticConfig(hidden_width=32), feature_size=policy.encoder.size, action_size=EXECUTE * 2)
    return Learner(
        policy, critic, torch.optim.Adam(policy.denoiser.parameters(), lr=1e-3),
        torch.optim.Adam(critic.parameters(), lr=1e-3), torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_v_learns_the_returns() -> None:
    learner = make_learner(make_policy())
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(256, 4, generator=generator)
    returns = feature[:, 0]
    first, second = (
        fit_value(
            learner.critic, feature, returns, learner.value_optimizer, before=values_of(learner.critic, feature),
            config=VALUE, generator=generator,
        )
        for _ in range(2)
    )  # fmt: skip
    assert abs(first["explained_variance"]) < 0.1 < 0.9 < second["explained_variance"]


VALUE = ValueConfig(epochs=80, batch_size=64)


def test_warm_up_moves_v_alone() -> None:
    policy = make_policy()
    batch, _ = play(policy, 3)
    learner = make_learner(policy)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    v = [parameter.clone() for parameter in learner.critic.v_network.parameters()]
    numbers = improve(learner, batch, config=UPDATE, move_policy=False)
    assert "kl_total" not in numbers
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert any(not torch.equal(a, b) for a, b in zip(v, learner.critic.v_network.parameters(), strict=True))


def test_an_update_that_leaves_the_trust_region_is_undone() -> None:
    policy = make_policy()
    batch, _ = play(policy, 3)
    learner = make_learner(policy)
    before = copy.deepcopy(policy.state_dict())
    numbers = improve(learner, batch, config=replace(UPDATE, max_kl=1e-9))
    assert numbers["undone"]
    assert numbers["gradient_steps"] > 0
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert learner.optimizer.param_groups[0]["lr"] == 1e-3 / 2
    assert not learner.optimizer.state
    kept = improve(learner, batch, config=UPDATE)
    assert not kept["undone"]
    # Along fresh chains of the same states it is smaller: the update was fitted to the chains of the batch.
    old = copy.deepcopy(policy)
    old.load_state_dict(before)
    exact = float(decision_kl(policy, old, batch.feature, torch.Generator().manual_seed(0)).sum())
    assert 0.5 * kept["kl_after"] < exact < kept["kl_after"]


def test_an_encoder_that_learns_has_ratio_one_and_gets_a_gradient() -> None:
    policy = make_policy()
    policy.encoder.extra = torch.nn.Linear(policy.encoder.size, policy.encoder.size)
    plain = policy.encoder.forward
    policy.encoder.forward = lambda observation: policy.encoder.extra(plain(observation))
    batch, _ = play(policy, 3)
    learner = make_learner(policy)
    learner.optimizer = torch.optim.Adam([*policy.denoiser.parameters(), *policy.encoder.extra.parameters()], lr=1e-3)
    before = policy.encoder.extra.weight.clone()
    improve(learner, batch, config=UPDATE)
    torch.testing.assert_close(policy.encoder.extra.weight, before, rtol=0, atol=0)
    rows: list[int] = []
    policy.encoder.forward = lambda observation: (
        rows.append(len(observation.proprio)) or policy.encoder.extra(plain(observation))
    )
    batch = play(policy, 3)[0]
    rows.clear()
    numbers = improve(learner, batch, config=replace(UPDATE, train_encoder=True))
    # Never more at once than in a gradient step, also behind the update: maps of pictures would not fit.
    assert max(rows) == UPDATE.ppo.batch_size < len(batch)
    assert numbers["gradient_steps"] > 0
    assert not torch.equal(policy.encoder.extra.weight, before)


def test_hand_over_names_every_difference() -> None:
    policy = make_policy()
    left = handover_document(policy, gamma=0.99, reward=RewardConfig())
    check_handover(left, left, where="run")
    noisier = policy.with_mode(SamplingMode.eta1, sigma_min=0.1)
    with pytest.raises(PolicyError, match=r"gamma 0\.99; sigma_min 0\.01.*gamma 0\.96; sigma_min 0\.1"):
        check_handover(handover_document(noisier, gamma=0.96, reward=RewardConfig()), left, where="run")
    wide = dict.fromkeys(["proprio", "state", "action"], torch.tensor([[-3.0] * 4, [3.0] * 4]))
    other = make_policy()
    other.encoder.normalizer = Normalizer.fit(
        {key: values[:, :2] if key != "state" else values for key, values in wide.items()},
        {"proprio": NormalizerMode.standard, "state": NormalizerMode.standard, "action": NormalizerMode.range},
    )
    with pytest.raises(PolicyError, match="normalizer"):
        check_handover(handover_document(other, gamma=0.99, reward=RewardConfig()), left, where="run")


def test_a_policy_without_success_and_a_score_that_is_not_reproduced_are_refused(tmp_path: Any) -> None:
    document = {"mode": "eta1"}
    with pytest.raises(PolicyError, match="0 of 50"):
        check_reproduced(proportion(0, 50), "", document=document)
    check_reproduced(proportion(1, 50), "", document=document)
    (tmp_path / "summary.json").write_text(
        '{"success_once": {"k": 160, "n": 200}, "protocol": {"sampling": "eta1, 4 steps"}}'
    )
    check_reproduced(proportion(75, 100), str(tmp_path), document=document)
    with pytest.raises(PolicyError, match=r"160 of 200.*30 of 100"):
        check_reproduced(proportion(30, 100), str(tmp_path), document=document)
    with pytest.raises(PolicyError, match="mode mean"):
        check_reproduced(proportion(75, 100), str(tmp_path), document={"mode": "mean"})


def test_roll_back_restores_the_best_weights_with_half_the_step() -> None:
    policy = make_policy()
    learner = make_learner(policy)
    state = OnlineState(learner, None)
    state.remember(proportion(80, 100))
    best = {name: value.clone() for name, value in policy.state_dict().items()}
    improve(learner, play(policy, 3)[0], config=UPDATE)
    assert not state.has_fallen(proportion(65, 100))  # 95 % intervals do not overlap, but the best of many is lucky
    state.remember(proportion(70, 100))
    assert state.best_score == proportion(80, 100)
    assert state.has_fallen(proportion(40, 100))
    rate = learner.optimizer.param_groups[0]["lr"]
    state.roll_back()
    assert all(torch.equal(best[name], value) for name, value in policy.state_dict().items())
    assert learner.optimizer.param_groups[0]["lr"] == rate / 2
    assert not learner.optimizer.state
    # A run that ends here saves the best policy, so its summary must not tell of the one that fell.
    assert state.last_score == proportion(80, 100)


def test_the_student_goes_back_with_its_policy_also_behind_a_restart(tmp_path: Path) -> None:
    policy = make_policy()
    batch = play(policy, 3)[0]

    def begun() -> OnlineState:
        return OnlineState(make_learner(policy), JointStudent(policy, StudentConfig(num_steps=3), seed=0))

    state = begun()
    assert state.student is not None
    state.student.learn(policy, batch.observation)
    state.remember(proportion(80, 100))
    best = {name: value.clone() for name, value in state.student.average.state_dict().items()}
    state.student.learn(policy, batch.observation)
    again = begun()
    again.restore(Checkpoint(tmp_path, 0, copy.deepcopy(state.tensors()), {"online": state.document()}))
    for each in (state, again):
        assert each.student is not None
        assert not all(torch.equal(best[name], value) for name, value in each.student.average.state_dict().items())
        each.roll_back()
        for module in (each.student.average, each.student.module):
            assert all(torch.equal(best[name], value) for name, value in module.state_dict().items())


class OnGpu:
    """State of a random generator that `load_checkpoint` has moved: torch refuses it until it is back on the CPU."""

    def __init__(self, state: torch.Tensor) -> None:
        self._state = state

    def cpu(self) -> torch.Tensor:
        return self._state


def test_random_states_that_were_loaded_onto_a_gpu_are_restored(tmp_path: Path) -> None:
    policy = make_policy()
    state = OnlineState(make_learner(policy), JointStudent(policy, StudentConfig(num_steps=1), seed=0))
    tensors = state.tensors()
    for name in ("random", "student_random"):
        tensors[name] = {**tensors[name], "generator": OnGpu(tensors[name]["generator"])}
    state.restore(Checkpoint(tmp_path, 0, tensors, {"online": state.document()}))


def test_the_student_follows_its_teacher() -> None:
    policy = make_policy()
    batch, _ = play(policy, 4, range(20))
    student = JointStudent(policy, StudentConfig(num_steps=150, batch_size=64, learning_rate=3e-3), seed=0)
    first = student.learn(policy, batch.observation)
    for _ in range(3):
        last = student.learn(policy, batch.observation)
    assert last < 0.5 * first
    again = JointStudent(policy, StudentConfig(num_steps=150, batch_size=64, learning_rate=3e-3), seed=0)
    again.restore(copy.deepcopy(student.tensors()))
    assert again.learn(policy, batch.observation) == student.learn(policy, batch.observation)


def test_a_head_imitates_nothing_and_says_so_before_anything_is_played(tmp_path: Path) -> None:
    teacher = make_policy()
    student = JointStudent(teacher, StudentConfig(num_steps=1), seed=0)
    documents = {
        "policy": student.document(),
        "spec": teacher.spec.to_json(),
        "normalizer": teacher.normalizer.to_json(),
    }
    save_checkpoint(tmp_path, step=1, tensors={"policy": student.average.state_dict()}, documents=documents)
    config = OnlineConfig(policy=str(tmp_path), sigma_min=0.05, imitate_successes=True)
    with pytest.raises(PolicyError, match="imitate_successes"):
        start_learning(LearningConfig.of(config), tmp_path / "run")


def test_rl_on_the_one_step_head_is_an_exact_gaussian_with_ratio_one() -> None:
    teacher = make_policy().with_mode(SamplingMode.eta0)
    head = teacher.one_step_student(1)
    noisy = head.with_mode(SamplingMode.eta1, sigma_min=0.1)
    assert noisy.noise_shape == (2, *head.noise_shape[1:])
    observation = Observation(proprio=torch.zeros(5, 1, 2), state=torch.rand(5, 1, 4))
    noise = torch.randn(5, *noisy.noise_shape, generator=torch.Generator().manual_seed(0))
    centre = head.normalized_action(observation, noise[:, :1])
    chain = noisy.chain(observation, noise)
    torch.testing.assert_close(chain.latents[:, 1], centre + 0.1 * noise[:, 1])
    normal = torch.distributions.Normal(centre, 0.1)
    torch.testing.assert_close(chain.log_prob[:, 0], normal.log_prob(chain.latents[:, 1]).sum((1, 2)))
    batch, _ = play(noisy, 3)
    before = [parameter.clone() for parameter in head.denoiser.parameters()]
    numbers = improve(make_learner(noisy), batch, config=UPDATE)
    assert numbers["gradient_steps"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, head.denoiser.parameters(), strict=True))
    with pytest.raises(PolicyError, match="sigma_min"):
        head.with_mode(SamplingMode.eta1)
    with pytest.raises(PolicyError, match="mean"):
        head.with_mode(SamplingMode.mean, sigma_min=0.1)
