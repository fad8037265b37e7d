"""Best of N: one chunk is the plain policy bit for bit, and of several the critic's favourite is played."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.contracts import Policy
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.errors import ConfigError, PolicyError, RunError
from robot_rl.fitting.best_of import BestOfPolicy, load_critic
from robot_rl.fitting.denoising_ppo import executed_action
from robot_rl.policies.critics import CriticConfig, build_critic
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.runs.checkpoint import save_checkpoint
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

SPEC = EnvSpec(
    env_id="Toy",
    observation={"proprio": ArraySpec("proprio", (2,)), "state": ArraySpec("state", (2,))},
    action=ArraySpec("action", (2,), low=(-4.0, -4.0), high=(4.0, 4.0)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "toy"),
    joint_names=(),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)
CRITIC = {"_target_": "robot_rl.policies.critics.build_critic", "hidden_width": 16, "num_layers": 1}


def make(mode: SamplingMode = SamplingMode.eta1, *, scale: float = 1.0, execute: int = 2) -> DiffusionPolicy:
    torch.manual_seed(0)
    config = DiffusionPolicyConfig(
        mode=mode, num_steps=3, horizon=4, execute=execute, hidden_width=32, level_embedding=16
    )
    data = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])
    modes = {"state": NormalizerMode.standard, "proprio": NormalizerMode.standard, "action": NormalizerMode.range}
    return DiffusionPolicy(
        config, SPEC, Normalizer.fit({key: data * (1.0 if key == "action" else scale) for key in modes}, modes)
    ).eval()


def observation(number: int) -> Observation:
    state = torch.linspace(-1, 1, 2 * number).view(number, 1, 2)
    return Observation(proprio=state, state=state)


class Table:
    """A critic that gives row i of a batch `low[i]` by its first member and 10 more by its second."""

    def __init__(self, low: list[float]) -> None:
        self.low = torch.tensor(low)
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def q(self, feature: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        self.asked.append((feature, action))
        return torch.stack([self.low, self.low + 10])


class ScriptedPolicy:
    """A stand-in with denoising steps: its final latent is its first draw, in units where 1 is 2 physical."""

    spec, sampler, device = SPEC, DiffusionPolicyConfig().sampler, torch.device("cpu")
    noise_shape, sampling = (2, 2, 1), "scripted"

    class config:
        execute, history, horizon = 1, 1, 2

    def encode(self, given: Observation) -> torch.Tensor:
        return given.arrays()["state"][:, 0]

    def sample(self, feature: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise[:, 0]

    def physical_action(self, normalized: torch.Tensor) -> torch.Tensor:
        return 2 * normalized.clamp(-1, 1)

    def reverse_step(self, *_: Any) -> Any: ...
    def act(self, *_: Any) -> Any: ...
    def reset(self, *_: Any) -> None: ...


@pytest.mark.parametrize("mode", list(SamplingMode))
def test_best_of_one_is_the_policy_bit_for_bit(mode: SamplingMode) -> None:
    policy = make(mode)
    critic = build_critic(CriticConfig(hidden_width=16), feature_size=2, action_size=4)
    best = BestOfPolicy(policy, critic, 1)
    assert isinstance(best, Policy)
    assert best.noise_shape == policy.noise_shape
    noise = torch.randn(7, *policy.noise_shape, generator=torch.Generator().manual_seed(1))
    plain, chosen = policy.act(observation(7), noise), best.act(observation(7), noise)
    assert torch.equal(plain.actions, chosen.actions)
    assert plain.execute == chosen.execute == 2


def test_the_favourite_chunk_of_each_state_is_played_whole() -> None:
    """Two states, three chunks each of two draws of (Tp, A) = (2, 1); numbers 0.0 to 2.3 say state and chunk.

    Favourites by the smaller member: chunk 2 of state 0, chunk 0 of state 1 (its tie with chunk 1 goes to the first).
    """
    noise = torch.full((2, 6, 2, 1), 9.0)
    for state in range(2):
        for chunk in range(3):
            noise[state, 2 * chunk] = torch.tensor([[0.1 * chunk + 0.5 * state], [-0.1 * chunk]])
    critic = Table([0.1, 0.2, 0.3, 0.7, 0.7, 0.6])
    best = BestOfPolicy(ScriptedPolicy(), critic, 3)
    assert best.noise_shape == (6, 2, 1)
    assert best.sampling == "best of 3, scripted"
    chunk = best.act(observation(2), noise)
    expected = 2 * torch.tensor([[[0.2], [-0.2]], [[0.5], [0.0]]])
    assert torch.allclose(chunk.actions, expected)
    assert chunk.execute == 1
    feature, action = critic.asked[0]
    assert torch.allclose(action.flatten(), torch.tensor([0.0, 0.1, 0.2, 0.5, 0.6, 0.7]))  # executed part alone
    assert torch.equal(feature[:3], feature[:1].expand(3, 2))
    assert torch.equal(feature[3:], observation(2).arrays()["state"][1].expand(3, 2))


def test_the_smaller_member_decides() -> None:
    class Quarrel(Table):
        def q(self, feature: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[9.0, 2.0], [0.0, 1.0]])  # minima 0 and 1, means 4.5 and 1.5

    noise = torch.zeros(1, 4, 2, 1)
    noise[0, 2] = 0.25
    chunk = BestOfPolicy(ScriptedPolicy(), Quarrel([]), 2).act(observation(1), noise)
    assert chunk.actions.flatten().tolist() == [0.5, 0.5]


def test_it_agrees_with_trying_every_chunk_by_itself() -> None:
    policy = make()
    critic = build_critic(CriticConfig(hidden_width=16), feature_size=2, action_size=4)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    best = BestOfPolicy(policy, critic, 5)
    seen = observation(4)
    noise = torch.randn(4, *best.noise_shape, generator=torch.Generator().manual_seed(2))
    draws = policy.noise_shape[0]
    chunks, values = [], []
    for number in range(5):
        final = policy.normalized_action(seen, noise[:, number * draws : (number + 1) * draws])
        chunks.append(policy.physical_action(final))
        with torch.no_grad():
            values.append(critic.q(policy.encode(seen), executed_action(policy, final)).amin(0))
    favourite = torch.stack(values).argmax(0)
    assert len(set(favourite.tolist())) > 1  # else this shows little
    expected = torch.stack([chunks[int(number)][row] for row, number in enumerate(favourite)])
    assert torch.allclose(best.act(seen, noise).actions, expected, atol=1e-6)


def test_refusals() -> None:
    policy = make()
    with pytest.raises(ConfigError, match="at least 1"):
        BestOfPolicy(policy, Table([]), 0)
    with pytest.raises(PolicyError, match="Table"):
        BestOfPolicy(Table([]), Table([]), 2)
    best = BestOfPolicy(policy, Table([]), 2)
    with pytest.raises(PolicyError, match=r"\(B, 8, 4, 2\)"):
        best.act(observation(1), torch.zeros(1, *policy.noise_shape))


def save(folder: Any, policy: DiffusionPolicy, *, critic: Any = None, document: Any = CRITIC) -> str:
    folder.mkdir()
    documents = {
        "policy": {"_target_": "robot_rl.policies.diffusion.DiffusionPolicy", "config": policy.config.to_json()},
        "spec": SPEC.to_json(),
        "normalizer": policy.normalizer.to_json(),
    }
    tensors = {"policy": policy.state_dict()}
    if critic is not None:
        tensors["critic"], documents["critic"] = critic.state_dict(), document
    save_checkpoint(folder, step=1, tensors=tensors, documents=documents)
    return str(folder)


def test_a_saved_critic_comes_back_and_a_strange_one_is_refused(tmp_path: Any) -> None:
    policy = make()
    critic = build_critic(CriticConfig(hidden_width=16, num_layers=1), feature_size=2, action_size=4)
    loaded = load_critic(save(tmp_path / "a", policy, critic=critic), policy)
    feature, action = torch.randn(6, 2), torch.randn(6, 4)
    assert torch.equal(loaded.q(feature, action), critic.eval().q(feature, action))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    load_critic(str(tmp_path / "a"), make(SamplingMode.eta0))  # another mode has the same features

    with pytest.raises(PolicyError, match=r"critic=<run directory of `robot-rl offline`>"):
        load_critic(save(tmp_path / "b", policy), policy)
    with pytest.raises(PolicyError, match="another encoder or normaliser"):
        load_critic(str(tmp_path / "a"), make(scale=1.5))
    with pytest.raises(PolicyError, match="another execute"):
        load_critic(str(tmp_path / "a"), make(execute=3))
    wide = save(tmp_path / "c", policy, critic=critic, document=CRITIC | {"hidden_width": 32})
    with pytest.raises(PolicyError, match="can build"):
        load_critic(wide, policy)
    with pytest.raises(RunError):
        load_critic(str(tmp_path / "nowhere"), policy)
