"""robomimic's side of the baselines: the HDF5 file by hand, the recurrent actor by hand, and both actors against it."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.normalizer import unit_actions
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.policies import baseline_robomimic as robomimic
from robot_rl.policies.baseline_rnn import BaselineRnnConfig, BaselineRnnPolicy
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode, Observation

needs_robomimic = pytest.mark.skipif(
    find_spec("robomimic") is None, reason="robomimic is not installed (extra robomimic)"
)

SPEC = EnvSpec(
    env_id="Two",
    observation={"proprio": ArraySpec("proprio", (1,)), "state": ArraySpec("state", (2,))},
    action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "two"),
    joint_names=("j",),
    robot="two",
    control_hz=4.0,
    max_episode_steps=6,
)


def episode(length: int, *, terminated: bool, offset: float) -> Episode:
    frames = offset + np.arange(2 * (length + 1), dtype=np.float32).reshape(length + 1, 2)
    return Episode(
        observation={"state": frames[:-1], "proprio": frames[:-1, :1]},
        final_observation={"state": frames[-1], "proprio": frames[-1, :1]},
        action=np.tile(np.linspace(-3, 5, length, dtype=np.float32)[:, None], (1, 2)),
        reward=np.arange(length, dtype=np.float32),
        success=np.arange(length) == (length - 1 if terminated else -1),
        terminated=terminated,
        truncated=not terminated,
        source=np.zeros(length, dtype=np.uint8),
        time=np.arange(length, dtype=np.float64),
    )


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    made = EpisodeStore.create(tmp_path / "store.zarr", spec=SPEC)
    made.append_many([episode(3, terminated=True, offset=0.0), episode(2, terminated=False, offset=10.0)])
    return made


def test_the_file_has_robomimics_layout_and_our_numbers(store: EpisodeStore, tmp_path: Path) -> None:
    import h5py

    episodes = robomimic.usable_episodes(store, only_success=False)
    assert episodes == [0, 1]
    normalizer = robomimic.fit_normalizer(store, episodes, keys=("state",))
    path = tmp_path / "episodes.hdf5"
    robomimic.write_robomimic(path, store, episodes, keys=("state",), normalizer=normalizer)
    # First element of the 5 frames that actions answered to: 0, 2, 4, 10, 12; the second is one more.
    seen = np.array([0.0, 2.0, 4.0, 10.0, 12.0])
    mean, std = seen.mean(), seen.std()
    with h5py.File(path) as file:
        assert sorted(file["data"]) == ["demo_0", "demo_1"]
        assert file["data"].attrs["total"] == 5
        first, second = file["data/demo_0"], file["data/demo_1"]
        assert (first.attrs["num_samples"], second.attrs["num_samples"]) == (3, 2)
        np.testing.assert_allclose(first["actions"][:, 0], [-1.0, 0.0, 1.0], atol=1e-6)  # -3, 1, 5
        np.testing.assert_allclose(second["actions"][:, 1], [-1.0, 1.0], atol=1e-6)
        assert first["rewards"][:].tolist() == [0.0, 1.0, 2.0]
        assert first["dones"][:].tolist() == [False, False, True]
        assert second["dones"][:].tolist() == [False, False]  # a time limit has a future
        np.testing.assert_allclose(first["obs/state"][:, 0], (seen[:3] - mean) / std, atol=1e-6)
        np.testing.assert_allclose(first["next_obs/state"][:, 0], (np.array([2, 4, 6]) - mean) / std, atol=1e-6)
        np.testing.assert_allclose(second["next_obs/state"][:, 1], (np.array([13, 15]) - mean - 1) / std, atol=1e-6)
        assert file["mask/train"][:].tolist() == [b"demo_0", b"demo_1"]


def test_only_success_leaves_failures_out_and_refuses_an_empty_rest(store: EpisodeStore, tmp_path: Path) -> None:
    assert robomimic.usable_episodes(store, only_success=True) == [0]
    failures = EpisodeStore.create(tmp_path / "failures.zarr", spec=SPEC)
    failures.append(episode(2, terminated=False, offset=0.0))
    with pytest.raises(DataError, match="only_success"):
        robomimic.usable_episodes(failures, only_success=True)


def recurrent(*, sequence: int = 3) -> BaselineRnnPolicy:
    config = BaselineRnnConfig(hidden=4, num_layers=2, sequence=sequence, num_modes=3)
    torch.manual_seed(0)
    return BaselineRnnPolicy(config, SPEC, unit_actions(SPEC, ("state",)))


def observation(state: torch.Tensor) -> Observation:
    return Observation(proprio=state[:, None, :1], state=state[:, None])


NONE = torch.zeros(2, 0, 1, 2)


def test_the_state_restarts_with_the_episode_and_after_the_training_length() -> None:
    """The second implementation: torch's LSTM over the whole sequence since the last restart."""
    policy = recurrent()
    states = torch.randn(7, 2, 2, generator=torch.Generator().manual_seed(1))
    starts = [0, 0]
    for step, state in enumerate(states):
        mask = np.array([step == 0, step in (0, 4)])  # env 1 begins a new episode at step 4
        policy.reset(mask)
        with torch.inference_mode():  # as a roll-out calls it
            played = policy.act(observation(state), NONE).actions[:, 0]
        for env in range(2):
            if mask[env] or step - starts[env] == 3:
                starts[env] = step
            with torch.no_grad():
                hidden = policy.lstm(states[starts[env] : step + 1, env][None])[0][0, -1]
                chosen = int(policy.logits(hidden).argmax())
                expected = torch.tanh(policy.means(hidden).view(3, 2)[chosen])
            torch.testing.assert_close(played[env], expected)


def test_the_first_noise_number_draws_the_component() -> None:
    """Probabilities 0.2, 0.5, 0.3: the uniform number Phi(e) falls below 0.2, between, or above 0.7."""
    policy = recurrent().with_mode(SamplingMode.eta1)
    with torch.no_grad():
        policy.logits.weight.zero_()
        policy.logits.bias.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
        policy.means.weight.zero_()
        policy.means.bias.copy_(torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.3]))
    normal = torch.distributions.Normal(0.0, 1.0)
    drawn = []
    for uniform in (0.1, 0.19, 0.21, 0.69, 0.71, 0.999):
        noise = torch.full((1, 1, 1, 2), float(normal.icdf(torch.tensor(uniform))))
        policy.reset(np.ones(1, dtype=bool))
        drawn.append(math.atanh(float(policy.act(observation(torch.zeros(1, 2)), noise).actions[0, 0, 0])))
    np.testing.assert_allclose(drawn, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3], atol=1e-6)
    likeliest = policy.with_mode(SamplingMode.mean)
    assert float(likeliest.act(observation(torch.zeros(2, 2)), NONE).actions[0, 0, 0]) == pytest.approx(math.tanh(0.2))


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robomimic, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'robot-rl\[robomimic\]'"):
        robomimic.iql(robomimic.IqlConfig())


def shaken(learner: Any) -> Any:
    """A model whose weights are far from their first values, which are all near zero in the last layer."""
    torch.manual_seed(0)
    model = learner.build(SPEC)
    with torch.no_grad():
        for parameter in model.nets.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.set_eval()
    return model


@needs_robomimic
def test_iql_actor_says_what_robomimic_says() -> None:
    learner = robomimic.iql(robomimic.IqlConfig(hidden=(8, 6)))
    model = shaken(learner)
    policy = learner.policy(model, SPEC, unit_actions(SPEC, ("state",)))
    state = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    theirs = model.get_action({"state": state})
    torch.testing.assert_close(policy.act(observation(state), torch.zeros(9, 0, 1, 2)).actions[:, 0], theirs.detach())
    assert theirs.std() > 0.02
    model.nets["actor"].train()  # otherwise it hides its spread
    spread = model.nets["actor"].forward_train({"state": state}).base_dist.scale.detach()
    drawn = policy.with_mode(SamplingMode.eta1).act(observation(state), torch.full((9, 1, 1, 2), 0.1)).actions[:, 0]
    torch.testing.assert_close(drawn, theirs.detach() + 0.1 * spread)


@needs_robomimic
def test_recurrent_actor_says_what_robomimic_says() -> None:
    learner = robomimic.bc_rnn(robomimic.BcRnnConfig(hidden=8, sequence=4))
    model = shaken(learner)
    policy = learner.policy(model, SPEC, unit_actions(SPEC, ("state",)))
    network, memory = model.nets["policy"], None
    for step, state in enumerate(torch.randn(10, 2, 2, generator=torch.Generator().manual_seed(1))):
        if step % 4 == 0:
            memory = network.get_rnn_init_state(batch_size=2, device=torch.device("cpu"))
        mixture, memory = network.forward_train_step({"state": state}, rnn_state=memory)
        chosen = mixture.mixture_distribution.logits.argmax(dim=1)
        theirs = mixture.component_distribution.mean[torch.arange(2), chosen].detach()
        torch.testing.assert_close(policy.act(observation(state), NONE).actions[:, 0], theirs)


@needs_robomimic
@pytest.mark.parametrize("algo", ["bc_rnn", "iql"])
def test_learning_is_repeatable_and_lowers_the_error(algo: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = EpisodeStore.create(tmp_path / "store.zarr", spec=SPEC)
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(8):  # the action is minus the state
        frames = rng.uniform(-1, 1, size=(7, 2)).astype(np.float32)
        one = episode(6, terminated=True, offset=0.0)
        episodes.append(
            Episode(
                {"state": frames[:-1], "proprio": frames[:-1, :1]}, {"state": frames[-1], "proprio": frames[-1, :1]},
                -frames[:-1], one.reward, one.success, True, False, one.source, one.time,
            )
        )  # fmt: skip
    made.append_many(episodes)
    state = torch.from_numpy(rng.uniform(-1, 1, size=(2, 2)).astype(np.float32))

    def errors() -> list[float]:
        config: Any = (
            robomimic.BcRnnConfig(hidden=16, sequence=3, learning_rate=1e-2, batch_size=32)
            if algo == "bc_rnn"
            else robomimic.IqlConfig(hidden=(16,), learning_rate=1e-2, batch_size=32)
        )
        found: list[float] = []

        def on_evaluation(_step: int, policy: Any, _metrics: Any) -> None:
            action = policy.act(observation(state), NONE).actions[:, 0]
            found.append(float((action + state).abs().mean()))

        robomimic.RobomimicLearner(config).learn(
            made, num_steps=60, seed=1, evaluate_every=30, on_evaluation=on_evaluation
        )
        return found

    first = errors()
    assert len(first) == 3
    assert first[-1] < 0.5 * first[0]
    assert errors() == first
    assert capsys.readouterr().out == ""  # what the library prints goes to stderr
