"""Depth images: metres to -1..1 by hand, other layouts refused, gradients into every weight, beside RGB in a policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robot_rl.data.normalizer import Normalizer
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.errors import PolicyError
from robot_rl.policies import pretrained
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.encoder_depth import DepthEncoder, depth_range
from robot_rl.policies.encoder_fusion import EncoderConfig, RepresentationConfig
from robot_rl.policies.encoder_images import Backbone, ImageEncoderConfig, Pooling
from robot_rl.policies.encoders import build_encoder
from robot_rl.policies.reconstruction import DepthDecoder, PixelDecoder
from robot_rl.runs.config import load_config
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.stages.export import write_onnx
from robot_rl.stages.imitate import ImitateConfig
from robot_rl.types import Observation, Window

DEPTH = ArraySpec("depth/top", (16, 16, 1), units=("m",))
SPEC = EnvSpec(
    env_id="Seen",
    observation={
        "proprio": ArraySpec("proprio", (3,)),
        "image/top": ArraySpec("image/top", (16, 16, 3), "uint8"),
        "depth/top": DEPTH,
        "depth/side": replace(DEPTH, name="depth/side"),
    },
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "delta"),
    joint_names=("a", "b", "c"),
    robot="r",
    control_hz=10.0,
    max_episode_steps=10,
)
KEYS = ("proprio", "image/top", "depth/top", "depth/side")
SMALL = ImageEncoderConfig(width=8, num_stages=2, keypoints=4, size=12, crop=14, jitter=0.2, depth_m=(0.5, 2.5))
NORMALIZER = {"proprio": 3, "action": 2}


def policy(config: EncoderConfig) -> DiffusionPolicy:
    torch.manual_seed(0)
    sizes = {"history": 2, "horizon": 4, "execute": 2, "hidden_width": 32, "num_levels": 20, "num_steps": 4}
    made = DiffusionPolicyConfig(observation_keys=KEYS, encoder=config, **sizes)
    return DiffusionPolicy(made, SPEC, Normalizer.identity(NORMALIZER))


def observation(batch: int = 3) -> Observation:
    g = torch.Generator().manual_seed(1)
    return Observation(
        proprio=torch.randn(batch, 2, 3, generator=g),
        images={"top": torch.randint(0, 256, (batch, 2, 16, 16, 3), generator=g, dtype=torch.uint8)},
        depth={name: 0.3 + 3 * torch.rand(batch, 2, 16, 16, 1, generator=g) for name in ("top", "side")},
    )


def window() -> Window:
    g = torch.Generator().manual_seed(9)
    return Window(
        observation=observation(), actions=torch.rand(3, 4, 2, generator=g), valid=torch.ones(3, 4, dtype=torch.bool),
        reward=torch.zeros(3, 4), next_observation=None, discount=None, source=torch.zeros(3, dtype=torch.uint8),
    )  # fmt: skip


def test_metres_are_scaled_by_hand_and_nothing_is_far() -> None:
    encoder = DepthEncoder(SMALL, DEPTH)
    metres = torch.tensor([0.5, 1.0, 1.5, 2.5, 0.1, 9.0, 0.0, float("nan"), float("inf"), -1.0])
    expected = torch.tensor([-1.0, -0.5, 0.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(encoder.scaled(metres), expected)


def test_the_spec_says_the_range_where_it_states_one() -> None:
    stated = replace(DEPTH, low=(0.2,) * 255 + (0.1,), high=(1.0,) * 255 + (1.1,))
    assert depth_range(SMALL, stated) == (0.1, 1.1)
    assert depth_range(SMALL, DEPTH) == (0.5, 2.5)
    assert DepthEncoder(SMALL, stated).scaled(torch.tensor(0.6)).item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(PolicyError, match="depth in m"):
        DepthEncoder(SMALL, replace(DEPTH, units=("mm",)))
    for wrong in ((1.0, 1.0), (2.0, 1.0), (0.1,), (-0.5, 1.0), (0.0, float("inf"))):
        with pytest.raises(PolicyError, match="nearest and farthest"):
            DepthEncoder(replace(SMALL, depth_m=wrong), DEPTH)


def test_other_layouts_and_types_are_refused() -> None:
    encoder = DepthEncoder(SMALL, DEPTH)
    good = torch.rand(2, 1, 16, 16, 1)
    assert encoder(good).shape == (2, 1, 12)
    for wrong in (
        good.permute(0, 1, 4, 2, 3),
        (1000 * good).to(torch.int32),
        good.double(),
        good.repeat(1, 1, 1, 1, 3),
    ):
        with pytest.raises(PolicyError, match="metres"):
            encoder(wrong)
    for spec in (replace(DEPTH, shape=(16, 16, 3)), replace(DEPTH, dtype="uint8"), replace(DEPTH, shape=(16, 16))):
        with pytest.raises(PolicyError, match=r"float32 \(H, W, 1\)"):
            DepthEncoder(SMALL, spec)
    with pytest.raises(PolicyError, match="Choose one: encoder=rgb, encoder=rgbd"):
        build_encoder(SPEC, ("proprio", "depth/top"), history=1, normalizer=Normalizer.identity(NORMALIZER))


@pytest.mark.parametrize("kind", ["resnet", "mean", "vit"])
def test_gradients_reach_every_weight_and_every_pixel_of_the_crop(kind: str) -> None:
    torch.manual_seed(0)
    changes = {"resnet": {}, "mean": {"pooling": Pooling.mean}, "vit": {"backbone": Backbone.vit, "patch": 7}}[kind]
    encoder = DepthEncoder(replace(SMALL, **changes), DEPTH)
    depth = (0.6 + 1.8 * torch.rand(2, 1, 16, 16, 1)).requires_grad_()
    weight = torch.randn(12)
    (encoder(depth) * weight).sum().backward()
    for name, parameter in encoder.named_parameters():
        # A constant added to every keypoint's map changes no softmax.
        if name != "pool.0.bias":
            assert float(parameter.grad.abs().sum()) > 0, name
    assert depth.grad is not None
    assert (depth.grad[:, :, 1:15, 1:15] != 0).float().mean() > 0.95
    assert (depth.grad[:, :, 0] == 0).all()  # outside the middle crop
    first = next(p for p in encoder.parameters() if p.ndim == 4)
    assert first.shape[1] == 1


def test_crops_are_drawn_in_training_alone_and_colours_never() -> None:
    encoder = DepthEncoder(replace(SMALL, crop=0), DEPTH)
    depth = torch.rand(2, 1, 16, 16, 1) + 1
    assert torch.equal(encoder(depth), encoder(depth, torch.Generator().manual_seed(0)))
    cropping = DepthEncoder(SMALL, DEPTH)
    drawn = [cropping(depth, torch.Generator().manual_seed(seed)) for seed in range(4)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    assert torch.equal(cropping(depth), cropping(depth))


@pytest.mark.parametrize("is_shared", [False, True])
def test_rgb_and_depth_train_beside_each_other(is_shared: bool) -> None:
    regularised = RepresentationConfig(reconstruction=0.5, bottleneck=1e-2, pixels=8)
    images = replace(SMALL, is_shared=is_shared)
    made = policy(EncoderConfig(images=images, proprio_size=12, representation=regularised)).train()
    parts = set(made.encoder.parts)
    assert parts == ({"proprio", "images", "depths"} if is_shared else set(KEYS))
    loss, numbers = made.loss(window(), torch.Generator().manual_seed(0))
    loss.backward()
    assert numbers["reconstruction"] > 0
    for key in parts - {"proprio"}:
        first = next(made.encoder.parts[key].parameters())
        assert float(first.grad.abs().sum()) > 0, key
    made.eval()
    seen = observation()
    nearer = replace(seen, depth={**seen.depth, "side": seen.depth["side"] * 0.5})
    assert not torch.equal(made.encode(seen), made.encode(nearer))
    assert torch.equal(made.encode(seen), made.encode(seen))


def test_reconstruction_compares_scaled_depths() -> None:
    decoder, colour = DepthDecoder(5, 8), PixelDecoder(5, 8)
    feature = torch.zeros(2, 5)
    made = decoder.layers(decoder.start(feature).unflatten(1, (-1, 4, 4)))
    assert made.shape == (2, 1, 8, 8)
    assert colour.layers(colour.start(feature).unflatten(1, (-1, 4, 4))).shape == (2, 3, 8, 8)
    # A picture of nothing but the farthest is 1 after the sigmoid, one of the nearest 0.
    torch.testing.assert_close(decoder.error(feature, torch.ones(2, 16, 16, 1)), ((made - 1) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(decoder.error(feature, -torch.ones(2, 16, 16, 1)), (made**2).mean((1, 2, 3)))


def test_pretrained_weights_are_for_colours_alone() -> None:
    made = DepthEncoder(replace(SMALL, pretrained="colours.safetensors", licence="MIT"), DEPTH)
    assert made.config.pretrained == ""
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_the_configuration_has_both(tmp_path: Path) -> None:
    node = load_config(ImitateConfig, ["encoder=rgbd", "env=push_cube"], name="imitate").policy
    assert list(node["observation_keys"]) == ["proprio", "image/base_camera", "depth/base_camera"]


@pytest.mark.slow
def test_an_exported_policy_takes_metres(tmp_path: Path) -> None:
    made = policy(EncoderConfig(images=SMALL, proprio_size=12)).eval().requires_grad_(False)
    config = {"observation_keys": list(KEYS), "history": 2, "horizon": 4, "execute": 2}
    metadata = {
        "spec": SPEC.to_json(), "config": config, "sampling": made.sampling,
        "noise": {"rule": "seeded", "seed": 0, "shape": list(made.noise_shape)},
    }  # fmt: skip
    path = tmp_path / "policy.onnx"
    write_onnx(made, path, metadata={key: json.dumps(value) for key, value in metadata.items()})
    seen, noise = observation(1), torch.randn(1, *made.noise_shape)
    theirs = OnnxPolicy(path, threads=1).act(seen.map(lambda x: x.numpy()), noise.numpy()).actions
    np.testing.assert_allclose(made.act(seen, noise).actions.numpy(), theirs, atol=1e-4)


def test_pretrained_weights_are_of_the_pictures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`encoder=rgbd` with images.pretrained: depth has a network of its own, which no file fills."""
    filled: list[str] = []
    monkeypatch.setattr(pretrained, "read_card", lambda config: {"of": config.pretrained})
    monkeypatch.setattr(pretrained, "_fill", lambda part, card: filled.append(card["of"]))
    trained = policy(EncoderConfig(images=replace(SMALL, crop=0, pretrained="w.safetensors", licence="MIT")))
    assert any(isinstance(part, DepthEncoder) for part in trained.encoder.parts.values())
    assert [card["of"] for card in pretrained.load_pretrained(trained.encoder)] == filled == ["w.safetensors"]
