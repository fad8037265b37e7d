"""Policies: losses by hand, the chain against its re-evaluation, actions in physical units, export parity, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robot_rl.algorithms.diffusion import FinalAlpha, Prediction, SamplingMode, add_noise, step_log_prob
from robot_rl.contracts import Policy
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.errors import PolicyError
from robot_rl.policies.denoisers import DenoiserKind
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.encoders import build_encoder
from robot_rl.policies.onestep import OneStepPolicy, OneStepPolicyConfig, teacher_target
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation, Window

STATE, PROPRIO, ACTION, HISTORY, HORIZON = 6, 4, 3, 2, 8
SPEC = EnvSpec(
    env_id="Toy",
    observation={
        "state": ArraySpec("state", (STATE,)),
        "proprio": ArraySpec("proprio", (PROPRIO,)),
        "image/wrist": ArraySpec("image/wrist", (4, 4, 3), dtype="uint8"),
        "points": ArraySpec("points", (16, 3)),
    },
    action=ArraySpec("action", (ACTION,), low=(-1.0, -2.0, -0.5), high=(1.0, 2.0, 0.5)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "toy"),
    joint_names=(),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)
SMALL = DiffusionPolicyConfig(
    history=HISTORY,
    horizon=HORIZON,
    execute=4,
    observation_keys=("state", "proprio"),
    hidden_width=32,
    channels=(8, 16),
    level_embedding=16,
)
STUDENT_STEPS = (1, 3)


def observe(count: int, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    return Observation(
        proprio=torch.randn(count, HISTORY, PROPRIO, generator=generator),
        state=5 + 2 * torch.randn(count, HISTORY, STATE, generator=generator),
    )


def window(count: int = 32, seed: int = 1) -> Window:
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(SPEC.action.low), torch.tensor(SPEC.action.high)
    return Window(
        observation=observe(count, seed),
        actions=low + (high - low) * torch.rand(count, HORIZON, ACTION, generator=generator),
        valid=torch.rand(count, HORIZON, generator=generator) < 0.7,
        reward=torch.zeros(count, HORIZON),
        next_observation=None,
        discount=None,
        source=torch.zeros(count, dtype=torch.uint8),
    )


def normalizer(stretch: float = 1.0) -> Normalizer:
    data = window(400)
    observation = data.observation
    return Normalizer.fit(
        {"state": observation.state, "proprio": observation.proprio, "action": stretch * data.actions},
        {"state": NormalizerMode.standard, "proprio": NormalizerMode.standard, "action": NormalizerMode.range},
    )


def make(config: DiffusionPolicyConfig = SMALL, stretch: float = 1.0) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(config, SPEC, normalizer(stretch))


def draw(policy: DiffusionPolicy | OneStepPolicy, count: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(count, *policy.noise_shape, generator=torch.Generator().manual_seed(seed))


class Recorder(nn.Module):
    """Denoiser that remembers its inputs and returns a fixed tensor."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.latents: list[torch.Tensor] = []
        self.levels: list[torch.Tensor] = []

    def forward(self, latent: torch.Tensor, level: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.latents.append(latent)
        self.levels.append(level)
        return self.answer.expand_as(latent)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_loss_by_hand_and_masked(prediction: Prediction) -> None:
    policy = make(replace(SMALL, prediction=prediction))
    policy.denoiser = Recorder(torch.tensor(0.25))
    batch = window(200)
    loss, metrics = policy.loss(batch, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    level = torch.randint(100, (200,), generator=generator)
    noise = torch.randn(200, HORIZON, ACTION, generator=generator)
    x0 = policy.normalizer.apply("action", batch.actions)
    signal = policy.alpha_bar[level].sqrt().float()[:, None, None]
    v = signal * noise - (1 - signal**2).sqrt() * x0
    target = {Prediction.epsilon: noise, Prediction.sample: x0, Prediction.v: v}[prediction]
    by_hand = float((target - 0.25)[batch.valid].square().mean())
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)
    assert metrics == {"denoise_mse": pytest.approx(by_hand, rel=1e-5)}
    assert torch.equal(policy.denoiser.levels[0], level)
    assert (int(level.min()), int(level.max())) == (0, 99)
    torch.testing.assert_close(policy.denoiser.latents[0], add_noise(x0, noise, level, policy.alpha_bar))


def test_actions_behind_the_episode_end_do_not_matter() -> None:
    policy = make(replace(SMALL, denoiser=DenoiserKind.mlp, prediction=Prediction.sample))
    batch = window()
    # Only the target of these elements is compared away; the network still sees them as part of the chunk.
    policy.denoiser = Recorder(torch.tensor(0.0))
    wild = torch.where(batch.valid[..., None], batch.actions, batch.actions + 0.3)
    losses = [
        float(policy.loss(replace(batch, actions=actions), torch.Generator().manual_seed(0))[0])
        for actions in (batch.actions, wild)
    ]
    assert losses[0] == losses[1] > 0


def test_generator_decides_the_loss() -> None:
    policy, batch = make(), window()
    losses = [policy.loss(batch, torch.Generator().manual_seed(seed))[1]["denoise_mse"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_condition_is_the_normalised_history_in_key_order() -> None:
    policy, observation = make(), observe(5)
    condition = policy.encode(observation)
    seen = window(400).observation
    parts = []
    for values, data in ((observation.state, seen.state), (observation.proprio, seen.proprio)):
        mean, std = data.mean((0, 1)), data.std((0, 1), correction=0)
        parts.append(((values - mean) / std).clamp(-5, 5).flatten(1))
    expected = torch.cat(parts, dim=1)
    assert condition.shape == (5, HISTORY * (STATE + PROPRIO))
    torch.testing.assert_close(condition, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", list(DenoiserKind))
def test_ratio_is_one_with_unchanged_weights(kind: DenoiserKind) -> None:
    policy = make(replace(SMALL, denoiser=kind, mode=SamplingMode.eta1))
    observation = observe(32)
    chain = policy.chain(observation, draw(policy, 32))
    assert policy.noise_shape == (11, HORIZON, ACTION)
    condition = policy.encode(observation)
    for step in range(10):
        mean, std = policy.reverse_step(chain.latents[:, step], step, condition)
        log_prob = step_log_prob(mean, std, chain.latents[:, step + 1])
        assert log_prob.requires_grad
        ratio = (log_prob - chain.log_prob[:, step]).exp()
        assert float((ratio - 1).abs().max()) < 1e-5


def test_changed_weights_change_the_ratio() -> None:
    """So that the test above can fail."""
    policy = make(replace(SMALL, mode=SamplingMode.eta1))
    observation = observe(8)
    chain = policy.chain(observation, draw(policy, 8))
    with torch.no_grad():
        policy.denoiser.leave.bias += 0.01
    mean, std = policy.reverse_step(chain.latents[:, 3], 3, policy.encode(observation))
    assert float((step_log_prob(mean, std, chain.latents[:, 4]) - chain.log_prob[:, 3]).abs().max()) > 1e-2


def test_action_is_clipped_after_the_chain_only() -> None:
    """Data twice as wide as the bounds: the chain stays unclipped, the action is inside the bounds."""
    policy = make(stretch=2.0)
    observation, noise = observe(64), draw(make(), 64)
    policy.denoiser = Recorder(torch.tensor([3.0, -3.0, 0.1]))
    final = policy.normalized_action(observation, noise)
    assert torch.equal(final, policy.chain(observation, noise).latents[:, -1])
    assert float(final.abs().max()) > 1.0
    low, high = torch.tensor(SPEC.action.low), torch.tensor(SPEC.action.high)
    physical = policy.normalizer.invert("action", final.clamp(-1, 1))
    assert bool((physical > high).any())
    actions = policy.act(observation, noise).actions
    torch.testing.assert_close(actions, torch.minimum(torch.maximum(physical, low), high))


def test_known_action() -> None:
    """A network that always answers x0 = (0.5, 0, -1) leads to that action, but for the last level's noise."""
    policy = make(replace(SMALL, prediction=Prediction.sample, final_alpha=FinalAlpha.one))
    policy.denoiser = Recorder(torch.tensor([0.5, 0.0, -1.0]))
    chunk = policy.act(observe(7), draw(policy, 7))
    expected = torch.tensor([0.5, 0.0, -0.5]).expand(7, HORIZON, ACTION)
    assert chunk.execute == 4
    torch.testing.assert_close(chunk.actions, expected, rtol=0, atol=0.02)  # the data's range misses the bounds a bit


def test_unbounded_action_is_not_clipped() -> None:
    spec = replace(SPEC, action=ArraySpec("action", (ACTION,)))
    policy = DiffusionPolicy(SMALL, spec, normalizer(stretch=50.0))
    assert float(policy.act(observe(64), draw(policy, 64)).actions.abs().max()) > 10.0


@pytest.mark.parametrize("mode", list(SamplingMode))
def test_acting_is_a_pure_function_of_observation_and_noise(mode: SamplingMode) -> None:
    policy = make().with_mode(mode)
    observation, noise = observe(6), draw(policy, 6)
    first = policy.act(observation, noise).actions
    policy.reset(torch.ones(6, dtype=torch.bool).numpy())
    assert torch.equal(policy.act(observation, noise).actions, first)
    assert not torch.equal(policy.act(observation, -noise).actions, first)
    one = policy.act(observation.map(lambda array: array[2:3]), noise[2:3]).actions
    torch.testing.assert_close(one, first[2:3], rtol=0, atol=1e-5)
    from_numpy = policy.act(observation.map(lambda array: array.numpy()), noise.numpy()).actions
    assert torch.equal(from_numpy, first)


def test_modes_differ_and_share_weights() -> None:
    policy = make()
    other = policy.with_mode(SamplingMode.mean)
    observation, noise = observe(6), draw(policy, 6)
    assert policy.config.mode is policy.sampler.mode is SamplingMode.eta0
    assert other.config.mode is other.sampler.mode is SamplingMode.mean
    assert not torch.equal(policy.act(observation, noise).actions, other.act(observation, noise).actions)
    with torch.no_grad():
        policy.denoiser.leave.bias += 1.0
    assert torch.equal(other.denoiser.leave.bias, policy.denoiser.leave.bias)


def test_saved_policy_acts_the_same() -> None:
    policy = make()
    blank = Normalizer.identity({"state": STATE, "proprio": PROPRIO, "action": ACTION})
    config = DiffusionPolicyConfig.from_json(json.loads(json.dumps(policy.config.to_json())))
    assert config == policy.config
    other = DiffusionPolicy(config, SPEC, blank)
    other.load_state_dict(policy.state_dict())
    observation, noise = observe(4), draw(policy, 4)
    assert torch.equal(other.act(observation, noise).actions, policy.act(observation, noise).actions)
    names = list(policy.state_dict())
    tensors = {tensor.data_ptr() for tensor in policy.state_dict().values()}
    assert len(tensors) == len(names)  # no tensor twice: safetensors refuses shared memory


@pytest.mark.parametrize("num_steps", STUDENT_STEPS)
@pytest.mark.parametrize("prediction", list(Prediction))
def test_student_copies_the_teacher_and_learns_its_map(num_steps: int, prediction: Prediction) -> None:
    teacher = make(replace(SMALL, prediction=prediction))
    student = OneStepPolicy.from_teacher(teacher, num_steps)
    assert student.sampler.levels[0] == teacher.sampler.levels[0] == 91
    assert (student.config.num_steps, student.config.teacher_steps) == (num_steps, 10)
    for ours, theirs in zip(student.denoiser.parameters(), teacher.denoiser.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    observation, noise = observe(16), draw(teacher, 16)
    target = teacher_target(teacher, observation, noise)
    assert torch.equal(target, teacher.chain(observation, noise).latents[:, -1])
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        loss, metrics = student.loss(observation, noise, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(metrics["distill_mse"])
    assert losses[-1] < 0.2 * losses[0]
    gap = (student.normalized_action(observation, noise) - target).square().mean()
    assert float(gap) == pytest.approx(losses[-1], rel=0.5)
    assert student.act(observation, noise).actions.shape == (16, HORIZON, ACTION)


def test_student_loss_by_hand() -> None:
    student = OneStepPolicy.from_teacher(make())
    student.denoiser = Recorder(torch.tensor(0.5))
    loss, _ = student.loss(observe(4), draw(student, 4), torch.full((4, HORIZON, ACTION), 2.0))
    assert float(loss) == pytest.approx(2.25)
    assert student.denoiser.levels[0].tolist() == [91] * 4


def test_stochastic_teacher_is_refused() -> None:
    teacher = make(replace(SMALL, mode=SamplingMode.eta1))
    with pytest.raises(PolicyError, match="eta1"):
        OneStepPolicy.from_teacher(teacher)
    with pytest.raises(PolicyError, match="eta1"):
        teacher_target(teacher, observe(2), draw(teacher, 2))
    with pytest.raises(PolicyError, match="eta1"):
        OneStepPolicyConfig(teacher_mode=SamplingMode.eta1).sampler


def test_student_configuration_round_trip() -> None:
    student = OneStepPolicy.from_teacher(make().with_mode(SamplingMode.mean), 2)
    assert student.config.teacher_mode is SamplingMode.mean
    assert OneStepPolicyConfig.from_json(json.loads(json.dumps(student.config.to_json()))) == student.config


def test_both_are_policies() -> None:
    teacher = make()
    assert isinstance(teacher, Policy)
    assert isinstance(OneStepPolicy.from_teacher(teacher), Policy)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("image/wrist",), "Choose one: encoder=rgb"),
        (("state", "points"), "Choose one: encoder=rgb"),
        (("stat",), "Did you mean 'state'"),
        ((), "at least one"),
    ],
)
def test_keys_without_an_encoder_are_refused(keys: tuple[str, ...], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        build_encoder(SPEC, keys, history=HISTORY, normalizer=normalizer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"execute": 9}, "execute <= horizon"),
        ({"execute": 0}, "execute <= horizon"),
        ({"history": 0}, "history >= 1"),
        ({"num_steps": 101}, "1 to 100"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"denoiser": DenoiserKind.unet, "horizon": 7, "execute": 7}, "Valid horizons: 2, 4"),
    ],
)
def test_impossible_configuration_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make(replace(SMALL, **change))


@pytest.mark.parametrize(
    ("change", "message"), [({"horizn": 4}, "Did you mean 'horizon'"), ({"mode": "eta_0"}, "Did you mean 'eta0'")]
)
def test_foreign_json_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        DiffusionPolicyConfig.from_json(SMALL.to_json() | change)


def test_wrong_shapes_are_refused() -> None:
    policy = make()
    with pytest.raises(PolicyError, match="sampling mode"):
        policy.act(observe(2), draw(policy.with_mode(SamplingMode.eta1), 2))
    with pytest.raises(PolicyError, match="frames"):
        policy.act(observe(2).map(lambda array: array[:, :1]), draw(policy, 2))
    with pytest.raises(PolicyError, match="key 'state'"):
        policy.act(Observation(proprio=observe(2).proprio), draw(policy, 2))


EXPORTS = [
    (DenoiserKind.mlp, Prediction.epsilon, SamplingMode.eta0, 0),
    (DenoiserKind.mlp, Prediction.epsilon, SamplingMode.eta1, 0),
    (DenoiserKind.mlp, Prediction.v, SamplingMode.eta0, 0),
    (DenoiserKind.transformer, Prediction.v, SamplingMode.eta0, 0),
] + [(kind, Prediction.epsilon, SamplingMode.eta0, 1) for kind in DenoiserKind]


@pytest.mark.parametrize(("kind", "prediction", "mode", "student_steps"), EXPORTS)
def test_exported_graph_acts_the_same(
    kind: DenoiserKind, prediction: Prediction, mode: SamplingMode, student_steps: int, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    policy: DiffusionPolicy | OneStepPolicy = make(replace(SMALL, denoiser=kind, prediction=prediction)).with_mode(mode)
    if student_steps:
        policy = OneStepPolicy.from_teacher(policy, student_steps)
    example = observe(2)
    batch = {0: torch.export.Dim("batch", min=1)}
    path = str(tmp_path / "policy.onnx")
    torch.onnx.export(
        policy.eval(),
        ({"state": example.state, "proprio": example.proprio}, draw(policy, 2)),
        path,
        dynamo=True,
        dynamic_shapes=({"state": batch, "proprio": batch}, batch),
        input_names=["state", "proprio", "noise"],
        output_names=["actions"],
        external_data=False,
        verbose=False,
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3, 5):
        observation, noise = observe(count, seed=count), draw(policy, count, seed=count)
        inputs = {"state": observation.state, "proprio": observation.proprio, "noise": noise}
        (actions,) = session.run(["actions"], {key: tensor.numpy() for key, tensor in inputs.items()})
        expected = policy.act(observation, noise).actions.numpy()
        assert float(np.abs(actions - expected).max()) < 1e-5
        assert float(np.abs(expected).max()) > 0.1
        assert not math.isclose(float(np.ptp(expected)), 0.0)
