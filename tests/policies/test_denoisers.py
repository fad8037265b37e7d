"""Denoisers: shapes, sensitivity to every input, independence of rows, refusals; the moving average in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robot_rl.errors import PolicyError
from robot_rl.policies.denoisers import DenoiserKind, LevelEmbedding, ResidualMlp, UNet1d, build_denoiser
from robot_rl.policies.diffusion import DiffusionPolicyConfig
from robot_rl.policies.transformer import ChunkTransformer

NETWORKS = [
    (DenoiserKind.mlp, 8, (64, 128)),
    (DenoiserKind.mlp, 1, (64, 128)),
    (DenoiserKind.unet, 8, (16, 32)),
    (DenoiserKind.unet, 4, (8, 12, 20)),
    (DenoiserKind.unet, 1, (16,)),
    (DenoiserKind.unet, 3, (16,)),
    (DenoiserKind.transformer, 8, (16,)),
    (DenoiserKind.transformer, 1, (16,)),
]

CLASSES = {
    DenoiserKind.mlp: ResidualMlp,
    DenoiserKind.unet: UNet1d,
    DenoiserKind.transformer: ChunkTransformer,
}


def build(kind: DenoiserKind, horizon: int, channels: tuple[int, ...]) -> ResidualMlp | UNet1d | ChunkTransformer:
    torch.manual_seed(0)
    config = DiffusionPolicyConfig(
        denoiser=kind, horizon=horizon, execute=1, channels=channels, hidden_width=32, level_embedding=16
    )
    return build_denoiser(config, action_size=3, condition_size=5)


def inputs(horizon: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(count, horizon, 3, generator=generator)
    return latent, torch.arange(count) * 20, torch.randn(count, 5, generator=generator)


@pytest.mark.parametrize(("kind", "horizon", "channels"), NETWORKS)
def test_shape_and_kind(kind: DenoiserKind, horizon: int, channels: tuple[int, ...]) -> None:
    network = build(kind, horizon, channels)
    assert isinstance(network, CLASSES[kind])
    out = network(*inputs(horizon))
    assert out.shape == (4, horizon, 3)
    assert out.dtype == torch.float32


@pytest.mark.parametrize(("kind", "horizon", "channels"), NETWORKS)
def test_every_input_matters_to_its_own_row_only(kind: DenoiserKind, horizon: int, channels: tuple[int, ...]) -> None:
    network = build(kind, horizon, channels)
    latent, level, condition = inputs(horizon)
    before = network(latent, level, condition).detach()
    for which in range(3):
        changed = [latent.clone(), level.clone(), condition.clone()]
        changed[which][2] += 1
        difference = (network(*changed).detach() - before).abs().amax(dim=(1, 2))
        assert float(difference[2]) > 1e-4
        assert float(difference[[0, 1, 3]].max()) == 0.0


@pytest.mark.parametrize(("kind", "horizon", "channels"), NETWORKS)
def test_row_does_not_depend_on_the_batch_or_training_mode(
    kind: DenoiserKind, horizon: int, channels: tuple[int, ...]
) -> None:
    network = build(kind, horizon, channels)
    latent, level, condition = inputs(horizon)
    together = network.train()(latent, level, condition)
    alone = torch.cat([network.eval()(latent[i : i + 1], level[i : i + 1], condition[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    layers = {type(layer) for layer in network.modules()}
    assert not layers & {nn.BatchNorm1d, nn.Dropout}


@pytest.mark.parametrize(("kind", "horizon", "channels"), NETWORKS)
def test_every_weight_gets_a_gradient(kind: DenoiserKind, horizon: int, channels: tuple[int, ...]) -> None:
    network = build(kind, horizon, channels)
    network(*inputs(horizon)).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert float(weight.grad.abs().max()) > 0, name


@pytest.mark.parametrize(("horizon", "channels", "valid"), [(6, (8, 8, 8), "4, 8, 12, 16"), (7, (8, 8), "2, 4, 6, 8")])
def test_impossible_horizon_names_the_valid_ones(horizon: int, channels: tuple[int, ...], valid: str) -> None:
    with pytest.raises(PolicyError, match=valid):
        UNet1d(horizon=horizon, action_size=2, condition_size=2, channels=channels)


def test_network_without_levels_is_refused() -> None:
    with pytest.raises(PolicyError, match="at least one"):
        UNet1d(horizon=4, action_size=2, condition_size=2, channels=())
    with pytest.raises(PolicyError, match="even"):
        LevelEmbedding(7)


def test_level_embedding_by_hand() -> None:
    out = LevelEmbedding(4)(torch.tensor([0, 3]))
    expected = torch.tensor(
        [[0.0, 0.0, 1.0, 1.0], [math.sin(3.0), math.sin(3e-4), math.cos(3.0), math.cos(3e-4)]], dtype=torch.float32
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_default_mlp_size_by_hand() -> None:
    """Level network, entry, two blocks (norm and two layers), exit."""
    network = build_denoiser(DiffusionPolicyConfig(), action_size=4, condition_size=42)
    level = 64 * 256 + 256 + 256 * 64 + 64
    entry = (8 * 4 + 64 + 42) * 256 + 256
    block = 2 * 256 + 2 * (256 * 256 + 256)
    exit_ = 256 * 32 + 32
    assert sum(p.numel() for p in network.parameters()) == level + entry + 2 * block + exit_


def set_weight(module: nn.Linear, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)
