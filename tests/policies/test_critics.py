"""Critics: members against a plain nn.Sequential each, independence of rows and members, features, refusals."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch
import yaml
from torch import nn

from robot_rl.errors import PolicyError
from robot_rl.policies.critics import Critic, CriticConfig, build_critic
from robot_rl.runs.config import build, validate_component

CONFIG = CriticConfig(hidden_width=16, num_layers=2, num_q=3)


def critic(config: CriticConfig = CONFIG, seed: int = 0) -> Critic:
    torch.manual_seed(seed)
    built = build_critic(config, feature_size=5, action_size=4)
    with torch.no_grad():  # scales and shifts of LayerNorm that are not trivial
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built


def inputs(count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 5, generator=generator), torch.randn(count, 4, generator=generator)


def member_by_hand(module: Critic, member: int, layer_norm: bool) -> nn.Sequential:
    """The same weights in torch's own layers."""
    layers: list[nn.Module] = []
    stacked = [layer for layer in module.q_network.body if list(layer.parameters())]
    for layer in [*stacked, module.q_network.head]:
        first, second = (parameter.detach()[member] for parameter in layer.parameters())
        if first.shape[0] == 1 and layer is not module.q_network.head:
            plain: nn.Module = nn.LayerNorm(16)
            plain.load_state_dict({"weight": first[0], "bias": second[0]})
            layers += [plain, nn.SiLU()]
        else:
            plain = nn.Linear(first.shape[0], first.shape[1])
            plain.load_state_dict({"weight": first.T, "bias": second[0]})
            layers.append(plain)
            if not layer_norm and layer is not module.q_network.head:
                layers.append(nn.SiLU())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("layer_norm", [True, False])
@torch.no_grad()
def test_members_are_plain_networks(layer_norm: bool) -> None:
    module = critic(CriticConfig(hidden_width=16, num_layers=2, num_q=3, layer_norm=layer_norm))
    feature, action = inputs()
    found = module.q(feature, action)
    assert found.shape == (3, 7)
    for member in range(3):
        plain = member_by_hand(module, member, layer_norm)
        torch.testing.assert_close(found[member], plain(torch.cat([feature, action], dim=1))[:, 0], atol=1e-5, rtol=0)
    assert module.value(feature).shape == (7,)


@torch.no_grad()
def test_features_carry_the_first_member() -> None:
    module = critic()
    feature, action = inputs()
    phi = module.features(feature, action)
    assert phi.shape == (7, 16)
    head = module.q_network.head
    torch.testing.assert_close((phi @ head.weight[0] + head.bias[0])[:, 0], module.q(feature, action)[0])


def test_a_member_and_a_row_stand_alone() -> None:
    module = critic()
    feature, action = inputs()
    module.q(feature, action)[1, 3].backward()
    for parameter in module.q_network.parameters():
        assert parameter.grad is not None
        touched = parameter.grad.flatten(1).abs().sum(dim=1) > 0
        assert touched.tolist() == [False, True, False]
    assert all(parameter.grad is None for parameter in module.v_network.parameters())
    with torch.no_grad():
        alone = module.q(feature[3:4], action[3:4])
        torch.testing.assert_close(alone[:, 0], module.q(feature, action)[:, 3], atol=1e-6, rtol=0)


def test_fresh_critic_is_near_zero_and_seeded() -> None:
    def fresh(seed: int) -> Critic:
        torch.manual_seed(seed)
        return build_critic(CriticConfig(), feature_size=42, action_size=32)

    generator = torch.Generator().manual_seed(0)
    feature, action = torch.randn(512, 42, generator=generator), torch.rand(512, 32, generator=generator) * 2 - 1
    with torch.no_grad():
        q = fresh(0).q(feature, action)
        assert float(q.abs().max()) < 0.05
        assert torch.equal(q, fresh(0).q(feature, action))
        assert not torch.equal(q, fresh(1).q(feature, action))
        assert not torch.allclose(q[0], q[1])


def test_built_from_the_shipped_choice() -> None:
    choice = files("robot_rl.configs") / "critic" / "iql.yaml"
    node = yaml.safe_load(choice.read_text())
    assert validate_component(node, where="critic")[1] == CriticConfig()
    assert isinstance(build(node, feature_size=5, action_size=4), Critic)


@pytest.mark.parametrize("wrong", [{"num_q": 0}, {"hidden_width": 0}, {"num_layers": 0}])
def test_refusals(wrong: dict[str, int]) -> None:
    with pytest.raises(PolicyError, match=f"critic.{next(iter(wrong))}: expected at least 1, got 0"):
        build_critic(CriticConfig(**wrong), feature_size=5, action_size=4)
