"""RTI around a toy policy: what the network is shown, fallbacks and their counts, one env as in a batch, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from robot_rl.algorithms.diffusion import Prediction, SamplingMode, squared_cosine_alpha_bar
from robot_rl.algorithms.warm_start import StartKind, WarmStart
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.encoder_fusion import EncoderConfig
from robot_rl.policies.encoder_images import ImageEncoderConfig
from robot_rl.policies.warm_started import WarmStartedPolicy
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

SIZE, STATE, HORIZON, EXECUTE = 3, 2, 4, 1
SPEC = EnvSpec(
    env_id="Toy",
    observation={"state": ArraySpec("state", (STATE,)), "proprio": ArraySpec("proprio", (1,))},
    action=ArraySpec("action", (SIZE,), low=(-1.0,) * SIZE, high=(1.0,) * SIZE, meanings=("x", "y", "gripper")),
    action_semantics=ActionSemantics(
        ActionKind.delta, DeltaReference.target, "base", "none", "-1 closed .. 1 open", "toy"
    ),
    joint_names=(),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)
CONFIG = DiffusionPolicyConfig(horizon=HORIZON, execute=EXECUTE, hidden_width=16, level_embedding=8)
WARM = WarmStart(level=21)


def make(**changes: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    return DiffusionPolicy(config, SPEC, Normalizer.identity({"state": STATE, "proprio": 1, "action": SIZE})).eval()


def observe(count: int, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    state = 0.1 * torch.randn(count, 1, STATE, generator=generator)
    return Observation(proprio=torch.zeros(count, 1, 1), state=state)


def draw(policy: DiffusionPolicy | WarmStartedPolicy, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *policy.noise_shape, generator=torch.Generator().manual_seed(seed))


class Recorder(nn.Module):
    """Clean-sample denoiser that remembers what it is shown and answers with one chunk."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer, self.shown = answer, list[tuple[int, torch.Tensor]]()

    def forward(self, latent: torch.Tensor, level: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.shown.append((int(level[0]), latent))
        return self.answer.expand_as(latent)


@pytest.mark.parametrize("mode", list(SamplingMode))
def test_the_full_level_is_full_denoising(mode: SamplingMode) -> None:
    policy = make(mode=mode)
    rti = WarmStartedPolicy(policy, WarmStart(level=91))
    for call in range(3):
        noise = draw(policy, 2, call)
        assert torch.equal(rti.act(observe(2), noise).actions, policy.act(observe(2), noise).actions)
    assert rti.counts.to_json() == {"warm": 0, "first": 2, "jump": 0, "full": 4}


@pytest.mark.parametrize(
    ("start", "scale", "size"),
    [
        (StartKind.clean, None, 0.1),
        (StartKind.scaled, None, 0.1),
        (StartKind.noised, None, 1.0),  # noise brings a sign of full size to where the network was trained
        (StartKind.noised, 0.5, 0.5),
        (StartKind.clean, 1.0, 1.0),
    ],
)
def test_a_later_decision_starts_from_the_rest_of_the_last_chunk(
    start: StartKind, scale: float | None, size: float
) -> None:
    policy = make(prediction=Prediction.sample)
    answer = torch.tensor([[0.1, 0.5, -0.9], [0.2, 0.5, -0.9], [0.3, 0.5, 0.9], [0.4, 0.5, 0.9]])
    policy.denoiser = Recorder(answer)
    rti = WarmStartedPolicy(policy, replace(WARM, start=start, discrete_scale=scale))
    first = rti.act(observe(1), draw(policy, 1)).actions
    shown = policy.denoiser.shown
    assert [level for level, _ in shown] == [91, 81, 71, 61, 51, 41, 31, 21, 11, 1]
    shown.clear()
    noise = draw(policy, 1, seed=1)
    second = rti.act(observe(1), noise).actions
    assert [level for level, _ in shown] == [21, 11, 1]
    # The rest of the first chunk, its last action twice; the gripper by its sign.
    guess = torch.cat([first[:, 1:], first[:, -1:]], dim=1)
    guess[0, :, 2] = size * torch.tensor([-1.0, 1.0, 1.0, 1.0])
    ab = float(squared_cosine_alpha_bar(100)[21])
    expected = {
        StartKind.clean: guess,
        StartKind.scaled: ab**0.5 * guess,
        StartKind.noised: ab**0.5 * guess + (1 - ab) ** 0.5 * noise[:, 0],
    }
    torch.testing.assert_close(shown[0][1], expected[start])
    assert second[0, :, 2].tolist() == [-1, -1, 1, 1]
    assert policy.sampler.levels[0] == 91, "the policy itself is as it was"


@pytest.mark.parametrize("mode", list(SamplingMode))
def test_a_batch_plays_what_its_envs_play_one_by_one(mode: SamplingMode) -> None:
    policy = make(mode=mode)
    count, calls, resets = 3, 6, {2: (1,), 4: (0, 2)}
    together = WarmStartedPolicy(policy, WARM)
    alone = [WarmStartedPolicy(policy, WARM) for _ in range(count)]
    for call in range(calls):
        mask = torch.tensor([call == 0 or row in resets.get(call, ()) for row in range(count)])
        observation, noise = observe(count, call), draw(policy, count, call)
        together.reset(mask)
        actions = together.act(observation, noise).actions
        for row, single in enumerate(alone):
            pick = slice(row, row + 1)
            single.reset(mask[pick])
            chosen = single.act(observation.map(lambda array, pick=pick: array[pick]), noise[pick]).actions
            torch.testing.assert_close(actions[pick], chosen, atol=1e-5, rtol=0)
    assert together.counts.to_json() == {"warm": 12, "first": 6, "jump": 0, "full": 0}


def test_after_a_reset_and_after_a_jump_denoising_is_full() -> None:
    policy = make()
    rti = WarmStartedPolicy(policy, replace(WARM, max_jump=0.5))
    rti.act(observe(2), draw(policy, 2))
    rti.reset(torch.tensor([True, False]))
    noise = draw(policy, 2, seed=1)
    again, full = rti.act(observe(2), noise).actions, policy.act(observe(2), noise).actions
    torch.testing.assert_close(again[0], full[0])
    assert not torch.allclose(again[1], full[1])
    moved = observe(2)
    assert moved.state is not None
    moved.state[1, 0, 0] += 0.6
    jumped, full = rti.act(moved, noise).actions, policy.act(moved, noise).actions
    torch.testing.assert_close(jumped[1], full[1])
    assert not torch.allclose(jumped[0], full[0])
    assert rti.counts.to_json() == {"warm": 2, "first": 3, "jump": 1, "full": 0}


def test_a_chunk_that_is_not_finite_starts_nothing() -> None:
    policy = make()
    rti = WarmStartedPolicy(policy, WARM)
    rti.act(observe(1), torch.full_like(draw(policy, 1), torch.nan))
    noise = draw(policy, 1)
    assert torch.equal(rti.act(observe(1), noise).actions, policy.act(observe(1), noise).actions)
    assert rti.counts.jump == 1


def test_a_policy_that_sees_images_starts_warm_too() -> None:
    """Only numbers can jump: another image alone does not end a plan."""
    config = replace(
        CONFIG, observation_keys=("state", "image/top"),
        encoder=EncoderConfig(images=ImageEncoderConfig(width=8, num_stages=1, keypoints=2, size=4), proprio_size=4),
    )  # fmt: skip
    spec = replace(SPEC, observation={**SPEC.observation, "image/top": ArraySpec("image/top", (8, 8, 3), "uint8")})
    policy = DiffusionPolicy(config, spec, Normalizer.identity({"state": STATE, "action": SIZE})).eval()
    rti = WarmStartedPolicy(policy, WARM)
    for call, shade in enumerate((0, 255)):
        image = torch.full((2, 1, 8, 8, 3), shade, dtype=torch.uint8)
        rti.act(replace(observe(2), images={"top": image}), draw(policy, 2, call))
    assert rti.counts.to_json() == {"warm": 2, "first": 2, "jump": 0, "full": 0}


def test_a_policy_of_images_alone_starts_warm_and_never_jumps() -> None:
    images = ImageEncoderConfig(width=8, num_stages=1, keypoints=2, size=4)
    config = replace(CONFIG, observation_keys=("image/top",), encoder=EncoderConfig(images=images))
    spec = replace(SPEC, observation={"image/top": ArraySpec("image/top", (8, 8, 3), "uint8")})
    rti = WarmStartedPolicy(DiffusionPolicy(config, spec, Normalizer.identity({"action": SIZE})).eval(), WARM)
    for shade in (0, 255):
        image = torch.full((2, 1, 8, 8, 3), shade, dtype=torch.uint8)
        rti.act(replace(observe(2), images={"top": image}), draw(rti, 2))
    assert rti.counts.to_json() == {"warm": 2, "first": 2, "jump": 0, "full": 0}


def test_refusals() -> None:
    policy = make()
    with pytest.raises(ConfigError, match="level=-1"):
        WarmStartedPolicy(policy, WarmStart())
    with pytest.raises(PolicyError, match=r"elements 0\.\.2 of the action"):
        WarmStartedPolicy(policy, replace(WARM, discrete_at=(3,)))
    nameless = make()
    nameless.spec = replace(SPEC, action=replace(SPEC.action, meanings=("unspecified",)))
    with pytest.raises(PolicyError, match="an element named gripper"):
        WarmStartedPolicy(nameless, WARM)
    assert WarmStartedPolicy(nameless, replace(WARM, discrete_at=())).discrete_at == ()
    rti = WarmStartedPolicy(policy, WARM)
    rti.act(observe(2), draw(policy, 2))
    with pytest.raises(PolicyError, match="2 envs"):
        rti.act(observe(3), draw(policy, 3))
    with pytest.raises(PolicyError, match="2 envs"):
        rti.reset(torch.tensor([True, False, False]))
    rti.reset(torch.ones(3, dtype=torch.bool))
    rti.act(observe(3), draw(policy, 3))
