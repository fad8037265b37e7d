"""Encoders of images and points: known sizes, second implementations, invariances, gradients, weights that load."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import PolicyError
from robot_rl.fitting.denoising_ppo import LogProbReduction, chain_log_prob, sample_latents
from robot_rl.fitting.online_update import let_encoder_learn
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.encoder_fusion import EncoderConfig, RepresentationConfig
from robot_rl.policies.encoder_images import Backbone, ImageEncoder, ImageEncoderConfig, Pooling, SpatialSoftmax
from robot_rl.policies.encoder_points import PointEncoder, PointEncoderConfig
from robot_rl.policies.encoders import build_encoder
from robot_rl.policies.pretrained import load_pretrained
from robot_rl.policies.resnet import FrozenNorm, ResNet
from robot_rl.policies.vit import VisionTransformer
from robot_rl.runs.config import load_config
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.stages.imitate import ImitateConfig
from robot_rl.types import Observation, Window

KEYS = ("proprio", "image/top", "image/side", "points")
SPEC = EnvSpec(
    env_id="Seen",
    observation={
        "proprio": ArraySpec("proprio", (3,)),
        "image/top": ArraySpec("image/top", (16, 16, 3), "uint8"),
        "image/side": ArraySpec("image/side", (16, 16, 3), "uint8"),
        "points": ArraySpec("points", (20, 6)),
    },
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "delta"),
    joint_names=("a", "b", "c"),
    robot="r",
    control_hz=10.0,
    max_episode_steps=10,
)
SMALL = ImageEncoderConfig(width=8, num_stages=2, keypoints=4, size=12, crop=14, jitter=0.2)
REGULARISED = RepresentationConfig(reconstruction=0.5, bottleneck=1e-2, anneal_steps=4, points=8, pixels=8, dropout=0.2)
CONFIG = EncoderConfig(
    images=SMALL,
    points=PointEncoderConfig(widths=(8, 16), size=12, use_colour=True),
    proprio_size=12,
    representation=REGULARISED,
)
HISTORY = 2


def normalizer() -> Normalizer:
    return Normalizer.identity({"proprio": 3, "points": 6, "action": 2})


def observation(batch: int = 4, seed: int = 0) -> Observation:
    g = torch.Generator().manual_seed(seed)
    picture = {"size": (batch, HISTORY, 16, 16, 3), "generator": g, "dtype": torch.uint8}
    return Observation(
        proprio=torch.randn(batch, HISTORY, 3, generator=g),
        images={name: torch.randint(0, 256, **picture) for name in ("top", "side")},
        points=torch.randn(batch, HISTORY, 20, 6, generator=g),
    )


def policy(config: EncoderConfig = CONFIG, **changes: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    settings = {"history": HISTORY, "horizon": 4, "execute": 2, "hidden_width": 32, "num_levels": 20, "num_steps": 4}
    keys = {"observation_keys": KEYS, "encoder": config}
    return DiffusionPolicy(DiffusionPolicyConfig(**settings | keys | changes), SPEC, normalizer())


def window(batch: int = 4) -> Window:
    g = torch.Generator().manual_seed(9)
    return Window(
        observation=observation(batch),
        actions=torch.rand(batch, 4, 2, generator=g),
        valid=torch.ones(batch, 4, dtype=torch.bool),
        reward=torch.zeros(batch, 4),
        next_observation=None,
        discount=None,
        source=torch.zeros(batch, dtype=torch.uint8),
    )


# Networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_176_512), ("resnet34", 21_284_672)])
def test_resnets_have_the_published_number_of_weights(name: str, parameters: int) -> None:
    # torchvision's documented 11,689,512 and 21,797,672 less the classifier's 513,000.
    network = ResNet(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 512, 2, 3)


def test_resnet_is_torchvisions() -> None:
    try:
        from torchvision.models import resnet18
    except (ImportError, RuntimeError) as error:  # PyPI's build does not import beside a CPU build of torch
        pytest.skip(f"torchvision: {error}")
    theirs = resnet18(norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels)).eval()
    ours = ResNet("resnet18")
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(ours(images).flatten(1), theirs(images))


def test_frozen_norm_is_batchnorm_in_use() -> None:
    theirs = nn.BatchNorm2d(5).eval()
    generator = torch.Generator().manual_seed(0)
    for value in (theirs.weight.data, theirs.bias.data, theirs.running_mean):
        value.copy_(torch.randn(5, generator=generator))
    theirs.running_var.copy_(torch.rand(5, generator=generator))
    ours = FrozenNorm(5)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(3, 5, 4, 4, generator=generator)
    torch.testing.assert_close(ours(x), theirs(x))
    assert not list(ours.parameters())


def test_vit_has_dinos_size_and_is_pytorchs_encoder() -> None:
    # DINO's ViT-S/16 has 21,665,664 weights.
    full = VisionTransformer(224, width=384, num_blocks=12, heads=6, patch=16)
    assert sum(p.numel() for p in full.parameters()) == 21_665_664
    ours = VisionTransformer(16, width=24, num_blocks=1, heads=3, patch=8)
    theirs = nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {
        "norm1": "norm1", "norm2": "norm2", "self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1", "linear2": "mlp.fc2",
    }  # fmt: skip
    state = ours.blocks[0].state_dict()
    copied = {f"{their}.{w}": state[f"{our}.{w}"] for their, our in names.items() for w in ("weight", "bias")}
    copied |= {f"self_attn.in_proj_{w}": state[f"attn.qkv.{w}"] for w in ("weight", "bias")}
    theirs.load_state_dict(copied)
    tokens = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.blocks[0](tokens), theirs.train()(tokens), rtol=1e-5, atol=1e-6)
    # Patches in reading order: only the second token sees the upper right corner.
    images = torch.zeros(2, 3, 16, 16)
    images[1, :, :8, 8:] = 1
    embedded = ours.patch_embed(images)
    assert [i for i in range(4) if not torch.equal(embedded[0, i], embedded[1, i])] == [1]


def test_spatial_softmax_says_where_a_channel_is() -> None:
    maps = torch.zeros(1, 2, 3, 5)
    maps[0, 0, 2, 1] = 100.0
    # Channel 0 at row 2 of 0..2 and column 1 of 0..4; channel 1 everywhere.
    torch.testing.assert_close(SpatialSoftmax()(maps), torch.tensor([[-0.5, 0.0, 1.0, 0.0]]))
    assert SpatialSoftmax()(torch.randn(2, 3, 1, 1)).tolist() == [[0.0] * 6] * 2


def test_a_softmax_over_one_place_is_refused_and_few_places_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Four stages leave one place of 32 pixels: the same feature for every image, and no gradient."""
    camera = ArraySpec("image/top", (32, 32, 3), "uint8")
    with pytest.raises(PolicyError, match=r"(?s)2 x 2 or more.*1 x 1 from 32 x 32.*num_stages=3"):
        ImageEncoder(ImageEncoderConfig(width=8), camera)
    ImageEncoder(ImageEncoderConfig(width=8, pooling=Pooling.mean), camera)
    for stages, crop, places in ((3, 0, "2 x 2"), (2, 0, None), (2, 20, "3 x 3")):
        caplog.clear()
        ImageEncoder(ImageEncoderConfig(width=8, num_stages=stages, crop=crop), camera)
        assert (places is None) == (not caplog.records)
        assert places is None or f"a last map of {places} from" in caplog.text


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, pooling=Pooling.mean)])
def test_what_is_at_another_place_or_brighter_changes_the_feature(config: ImageEncoderConfig) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(config, ArraySpec("image/top", (16, 16, 3), "uint8"))
    images = torch.randint(0, 256, (3, 1, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    feature = encoder(images)
    assert (feature[0] - feature[1]).abs().max() > 1e-3
    feature.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in encoder.backbone.parameters())


def test_points_have_no_order_and_repeats_count_once() -> None:
    torch.manual_seed(0)
    encoder = PointEncoder(PointEncoderConfig(use_colour=True), SPEC.observation["points"])
    points = observation().points
    assert points is not None
    feature = encoder(points)
    shuffled = points[:, :, torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(encoder(shuffled), feature, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder(torch.cat([points, points[:, :, :7]], 2)), feature, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(encoder(points + 0.1), feature, atol=1e-3)
    blind = PointEncoder(PointEncoderConfig(), SPEC.observation["points"])
    painted = torch.cat([points[..., :3], 1 - points[..., 3:]], dim=-1)
    assert torch.equal(blind(painted), blind(points))
    assert not torch.equal(encoder(painted), feature)


# Fusion --------------------------------------------------------------------------------------------------------------


def test_no_batchnorm_anywhere() -> None:
    configs = [CONFIG, replace(CONFIG, images=replace(SMALL, backbone=Backbone.vit, patch=7, width=16, heads=2))]
    configs.append(replace(CONFIG, images=replace(SMALL, pooling=Pooling.mean, is_shared=True, pretrained="x")))
    for config in configs:
        kinds = {type(module).__name__ for module in policy(config).modules()}
        assert not [kind for kind in kinds if "BatchNorm" in kind or kind.startswith("Dropout")], kinds


def test_every_trained_weight_gets_a_gradient_and_every_sense_matters() -> None:
    trained = policy()
    loss, parts = trained.loss(window(), torch.Generator().manual_seed(0))
    assert set(parts) == {"denoise_mse", "reconstruction", "bottleneck_kl"}
    loss.backward()  # type: ignore[no-untyped-call]
    silent = [n for n, p in trained.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    # A keypoint's bias shifts its whole map, which softmax does not see. Step 0 of the annealing hides log variances
    # from the KL, not from the draw.
    assert all("pool.0.bias" in name for name in silent), silent
    seen = trained.encode(observation())
    other = observation(seed=1)
    for change in (
        {"proprio": other.proprio},
        {"points": other.points},
        {"images": observation().images | {"side": other.images["side"]}},
    ):
        assert not torch.allclose(trained.encode(replace(observation(), **change)), seen, atol=1e-4)


def test_encode_is_a_function_and_training_draws_from_the_generator() -> None:
    trained = policy().train()
    assert torch.equal(trained.encode(observation()), trained.eval().encode(observation()))
    trained.train()
    drawn = [trained.encoder.training_condition(observation(), torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2], atol=1e-3)
    assert not torch.allclose(drawn[0], trained.encode(observation()), atol=1e-3)


def test_the_ratio_is_exactly_one_with_bottleneck_and_dropout() -> None:
    """P16: the latent behind a stored log-probability is its mean, even where the module is in training mode."""
    trained = policy().with_mode(SamplingMode.eta1).train()
    seen = observation(16)
    with torch.no_grad():
        stored = trained.encode(seen)
        latents = sample_latents(trained, stored, torch.Generator().manual_seed(0))
        old = chain_log_prob(trained, latents, stored, reduction=LogProbReduction.sum)
    new = chain_log_prob(trained, latents, trained.encode(seen), reduction=LogProbReduction.sum)
    assert torch.equal((new - old).exp(), torch.ones_like(old))
    # And the test can fail: with the drawn latent the ratio is another.
    drawn = trained.encoder.training_condition(seen, torch.Generator().manual_seed(0))[0]
    wrong = chain_log_prob(trained, latents, drawn, reduction=LogProbReduction.sum)
    assert float(((wrong - old).exp() - 1).abs().max()) > 0.05


def test_the_bottleneck_is_annealed_and_rl_takes_a_tenth_of_the_whole() -> None:
    trained = policy(replace(CONFIG, representation=replace(REGULARISED, dropout=0.0)))
    g = torch.Generator
    for step in range(6):
        _, penalty, parts = trained.encoder.training_condition(observation(), g().manual_seed(3))
        weight = 1e-2 * min(1.0, step / 4)
        assert float(penalty) == pytest.approx(
            0.5 * parts["reconstruction"] + weight * parts["bottleneck_kl"], rel=1e-5
        )
    in_rl = trained.representation_penalty(observation(), g().manual_seed(3))
    assert in_rl is not None
    assert float(in_rl) == pytest.approx(0.1 * float(penalty), rel=1e-5)
    assert int(trained.encoder.step) == 6
    trained.encoder.requires_grad_(False)
    assert trained.representation_penalty(observation(), g()) is None
    # An encoder that learns and has nothing to pay draws nothing and encodes nothing again.
    state = (drawn := g().manual_seed(5)).get_state()
    free = policy(replace(CONFIG, representation=RepresentationConfig()))
    assert free.encoder.learns
    assert free.representation_penalty(observation(), drawn) is None
    assert torch.equal(drawn.get_state(), state)
    assert set(trained.train().loss(window(), g().manual_seed(0))[1]) == {"denoise_mse"}
    assert set(policy().eval().loss(window(), g().manual_seed(0))[1]) == {"denoise_mse"}


def test_shared_cameras_share_and_others_do_not() -> None:
    shared = policy(replace(CONFIG, images=replace(SMALL, is_shared=True)))
    apart = policy()
    count = {id(m): m for m in shared.modules() if isinstance(m, ImageEncoder)}
    assert len(count) == 1
    assert len([m for m in apart.modules() if isinstance(m, ImageEncoder)]) == 2
    same = observation()
    same = replace(same, images={"top": same.images["top"], "side": same.images["top"]})
    features = {k: shared.encoder._features(same.arrays(), None)[k] for k in KEYS[1:3]}
    assert torch.equal(features["image/top"], features["image/side"])
    other = replace(SPEC, observation=SPEC.observation | {"image/side": ArraySpec("image/side", (18, 16, 3), "uint8")})
    with pytest.raises(PolicyError, match=r"is_shared=false"):
        build_encoder(other, KEYS, history=1, normalizer=normalizer(), config=shared.config.encoder)


def test_images_of_another_layout_or_kind_are_refused() -> None:
    trained = policy()
    images = observation().images
    for wrong, message in (
        (images["top"].permute(0, 1, 4, 2, 3), "rows, columns, channels"),
        (images["top"][:, :1], "shape"),
        (images["top"].float() / 255, "uint8"),
    ):
        arrays = observation().arrays() | {"image/top": wrong}
        with pytest.raises(PolicyError, match=message):
            trained.encoder.encode(arrays)
    with pytest.raises(PolicyError, match="crop"):
        policy(replace(CONFIG, images=replace(SMALL, crop=17)))
    with pytest.raises(PolicyError, match="patch"):
        policy(replace(CONFIG, images=replace(SMALL, backbone=Backbone.vit)))
    with pytest.raises(PolicyError, match="encoder=rgb"):
        policy(None)  # type: ignore[arg-type]


def test_evaluation_takes_the_middle_and_the_declared_preprocessing() -> None:
    config = replace(SMALL, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), crop=14)
    encoder = ImageEncoder(config, SPEC.observation["image/top"])
    images = observation().images["top"]
    expected = (images[0, 1, 1:15, 1:15].float() / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 2.0])
    torch.testing.assert_close(encoder._pixels(images, None)[1], expected.permute(2, 0, 1))
    resized = ImageEncoder(replace(config, image_size=7, pooling=Pooling.mean), SPEC.observation["image/top"])
    flat = torch.full_like(images, 51)
    torch.testing.assert_close(
        resized._pixels(flat, None)[0, :, 3, 3], torch.tensor([0.1 / 0.5, 0.0, -0.1 / 2.0]), atol=1e-6, rtol=1e-5
    )


# Configuration and old checkpoints -----------------------------------------------------------------------------------


def test_configuration_goes_through_json_and_yaml() -> None:
    settings = policy().config
    assert DiffusionPolicyConfig.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    broken = settings.to_json()
    broken["encoder"]["images"]["jiter"] = 0.1
    with pytest.raises(PolicyError, match="Did you mean 'jitter'"):
        DiffusionPolicyConfig.from_json(broken)
    for name, keys in {"rgb": "image/base_camera", "points_regularised": "points"}.items():
        node = load_config(ImitateConfig, ["env=point_reach", f"encoder={name}"], name="imitate").policy
        assert node["observation_keys"] == ["proprio", keys]
        assert node["encoder"]["images"]["width"] == 64
    assert load_config(ImitateConfig, ["env=point_reach"], name="imitate").policy["encoder"] is None


def test_policies_of_states_are_what_they_were_before_encoders_came() -> None:
    """Numbers of commit d7a8a50, which knew no images: a document without `encoder`, weights, actions and loss."""
    document = json.loads(
        '{"denoiser": "mlp", "prediction": "epsilon", "history": 1, "horizon": 4, "execute": 2, "observation_keys": ["state"],'
        ' "num_levels": 20, "num_steps": 4, "mode": "eta0", "final_alpha": "alpha_bar_0", "sigma_min": 0.01,'
        ' "sigma_max": 0.8, "clip_sample": 1.0, "hidden_width": 16, "num_blocks": 2, "channels": [64, 128],'
        ' "level_embedding": 8}'
    )
    spec = replace(
        SPEC,
        observation={"proprio": ArraySpec("proprio", (2,)), "state": ArraySpec("state", (4,))},
        action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
    )
    torch.manual_seed(0)
    old = DiffusionPolicy(
        DiffusionPolicyConfig.from_json(document), spec, Normalizer.identity({"state": 4, "action": 2})
    )
    assert len(old.state_dict()) == 30
    g = torch.Generator().manual_seed(1)
    seen = Observation(proprio=torch.rand(2, 1, 2, generator=g), state=torch.rand(2, 1, 4, generator=g))
    actions = old.act(seen, torch.randn(2, *old.noise_shape, generator=g)).actions
    assert actions[0, :2].flatten().tolist() == pytest.approx([
        -0.990669846534729, 0.08415189385414124, -0.9427253603935242, -0.8456900715827942,
    ], abs=1e-6)  # another processor rounds otherwise  # fmt: skip
    batch = replace(window(2), observation=seen, actions=torch.rand(2, 4, 2, generator=g))
    loss, parts = old.loss(batch, torch.Generator().manual_seed(2))
    assert float(loss.detach()) == pytest.approx(float.fromhex("0x1.bd491c0000000p-1"), rel=1e-6)
    assert parts == {"denoise_mse": float(loss.detach())}


# Pretrained weights --------------------------------------------------------------------------------------------------


def carded(folder: Path, **changes: Any) -> tuple[EncoderConfig, ResNet]:
    """Weights of a narrow ResNet as torchvision's BatchNorm network would save them, their card, and a configuration."""
    torch.manual_seed(3)
    source = ResNet("resnet18", width=8, num_stages=2, is_frozen=True)
    tensors = {f"net.{k}": torch.rand_like(v) for k, v in source.state_dict().items()}
    source.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items()})
    extra = {"net.fc.weight": torch.zeros(2, 2), "net.bn1.num_batches_tracked": torch.tensor(7), "head": torch.zeros(1)}
    path = folder / "weights.safetensors"
    save_file(tensors | extra, path)
    card = {
        "architecture": "resnet18", "source": "a test", "licence": "MIT", "image_size": 16, "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.2, 0.2], "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "prefix": "net.",
    }  # fmt: skip
    (folder / "weights.safetensors.json").write_text(json.dumps(card | changes))
    images = replace(
        SMALL, crop=0, image_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2), pretrained=str(path), licence="MIT"
    )
    return replace(CONFIG, images=images), source


def test_pretrained_weights_are_loaded_and_stay(tmp_path: Path) -> None:
    config, source = carded(tmp_path)
    trained = policy(config)
    cards = load_pretrained(trained.encoder)
    assert [card["source"] for card in cards] == ["a test"] * 2
    part = trained.encoder.parts["image/top"]
    for name, value in source.state_dict().items():
        assert torch.equal(part.backbone.state_dict()[name], value)
    before = {k: v.clone() for k, v in part.backbone.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=0.1)
    trained.loss(window(), torch.Generator().manual_seed(0))[0].backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in part.backbone.state_dict().items())
    # Nor does RL touch them, whether its encoder learns or not.
    learning = {name for name, p in trained.encoder.named_parameters() if p.requires_grad}
    let_encoder_learn(trained.encoder, True)
    assert {name for name, p in trained.encoder.named_parameters() if p.requires_grad} == learning
    assert not any("backbone" in name for name in learning)
    let_encoder_learn(trained.encoder, False)
    assert not any(p.requires_grad for p in trained.encoder.parameters())
    # A checkpoint needs neither file.
    (tmp_path / "weights.safetensors").unlink()
    again = policy(config)
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again.encode(observation()), trained.encode(observation()))


@pytest.mark.parametrize(
    ("card", "settings", "message"),
    [
        ({"licence": "CC-BY-NC-4.0"}, {}, "licence.*'MIT'.*CC-BY-NC"),
        ({"mean": [0.0, 0.0, 0.0]}, {}, "mean"),
        ({"image_size": 224}, {}, "image_size"),
        ({"sha256": "0" * 64}, {}, "sha256.*the file's own"),
        ({"architecture": "resnet34"}, {}, "architecture"),
        ({"prefix": "module."}, {}, "no conv1.weight"),
        ({"unknown": 1}, {}, "the fields"),
        ({}, {"width": 16}, r"conv1.weight of \(8, 3, 7, 7\) instead of \(16, 3, 7, 7\)"),
        ({}, {"num_stages": 1}, "which the network lacks"),
        ({"licence": ""}, {"licence": ""}, "licence"),
    ],
)
def test_cards_and_weights_that_do_not_fit_are_refused(
    tmp_path: Path, card: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    config, _ = carded(tmp_path, **card)
    trained = policy(replace(config, images=replace(config.images, **settings)))
    with pytest.raises(PolicyError, match=message):
        load_pretrained(trained.encoder)


def test_only_tensors_are_read(tmp_path: Path) -> None:
    config, source = carded(tmp_path)
    path = tmp_path / "weights.pt"

    def loaded(content: Any, **more: Any) -> None:
        torch.save(content, path)
        card = json.loads((tmp_path / "weights.safetensors.json").read_text())
        card |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "prefix": ""} | more
        (tmp_path / "weights.pt.json").write_text(json.dumps(card))
        load_pretrained(policy(replace(config, images=replace(config.images, pretrained=str(path)))).encoder)

    loaded({"r3m": source.state_dict()}, entry="r3m")
    with pytest.raises(PolicyError, match="a dictionary of tensors"):
        loaded({"r3m": source.state_dict()})
    with pytest.raises(PolicyError, match="weights_only"):
        loaded(source)
    with pytest.raises(PolicyError, match="card"):
        load_pretrained(policy(replace(config, images=replace(config.images, pretrained="/nowhere.pt"))).encoder)
