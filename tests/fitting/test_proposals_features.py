"""Imitation in the offline stage: the frozen encoder looks at nothing twice, and the weights are those of looking."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seen_steps import SPEC, seen_steps

from robot_rl.data.feature_cache import cached_features
from robot_rl.data.normalizer import Normalizer
from robot_rl.data.transitions import transitions_of
from robot_rl.data.windows import WindowSampler
from robot_rl.fitting.proposals import ImitationConfig, Method, imitation_proposal, next_proposal
from robot_rl.fitting.round_data import RoundData, RoundFits
from robot_rl.fitting.weights import WeightedRows
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.encoder_fusion import EncoderConfig, FusionEncoder, RepresentationConfig
from robot_rl.policies.encoder_images import ImageEncoderConfig
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.training import TrainConfig, train
from robot_rl.types import Observation, Window

FITS = RoundFits(critic=None, judge_critic=None, judge_model=None, report={})
TRAIN = TrainConfig(num_steps=4, batch_size=6, warmup_steps=1, checkpoint_every_steps=4, threads=1)


def seeing(*, sees: bool) -> DiffusionPolicy:
    torch.manual_seed(0)
    # What draws in training must not draw where the encoder is frozen.
    encoder = EncoderConfig(
        images=ImageEncoderConfig(width=4, num_stages=1, keypoints=3, size=6, crop=6, jitter=0.3), proprio_size=4,
        representation=RepresentationConfig(bottleneck=0.1, dropout=0.3),
    )  # fmt: skip
    config = DiffusionPolicyConfig(
        history=2, horizon=3, execute=2, hidden_width=8, level_embedding=8, num_levels=10, num_steps=2,
        observation_keys=("proprio", "image/top") if sees else ("proprio",), encoder=encoder if sees else None,
    )  # fmt: skip
    return DiffusionPolicy(config, SPEC, Normalizer.identity({"proprio": 2, "action": 2})).eval()


def round_data(policy: DiffusionPolicy, folder: Path) -> RoundData:
    windows = WindowSampler(
        seen_steps(),
        history=2,
        horizon=3,
        execute=2,
        keys=policy.config.observation_keys,
        episodes=np.arange(3),
        device="cpu",
    )
    features = cached_features(windows, policy, folder=folder, hashes=["a"])
    rows = transitions_of(windows, policy, gamma=0.99, features=features)
    return RoundData(windows, rows, rows, rows, rows, rows, ("a",), (0.0, 1.0), 5)


@pytest.mark.parametrize("sees", [True, False])
def test_imitation_on_features_is_imitation_on_what_was_seen(
    sees: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incumbent = seeing(sees=sees)
    data = round_data(incumbent, tmp_path / "cache")
    documents: dict[str, Any] = {"policy": {}, "spec": {}, "normalizer": {}}

    # As the stage did before: every batch is encoded again.
    plain = copy.deepcopy(incumbent)
    plain.denoiser.requires_grad_(True)
    plain.encoder.requires_grad_(False)
    draw = WeightedRows(torch.ones_like(data.all_rows.reward)).draw

    def batch_loss(module: Any, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        found = module.loss(data.windows.window(draw(6, generator), with_next=False), generator)
        return found  # type: ignore[no-any-return]

    (tmp_path / "plain").mkdir()
    wanted = train(
        plain,
        batch_loss,
        config=TRAIN,
        run=RunDirectory(tmp_path / "plain"),
        prefix="plain",
        documents=documents,
        seed=3,
    )

    def looks(self: Any, arrays: Any) -> torch.Tensor:
        raise AssertionError("looked at an observation")

    if sees:
        monkeypatch.setattr(FusionEncoder, "encode", looks)
    proposals = imitation_proposal(
        ImitationConfig(train=TRAIN), Method.merged, incumbent, data, FITS, place=tmp_path, documents=documents, seed=3
    )
    proposal = next_proposal(proposals, None)
    assert proposal is not None
    candidate = proposal[0]
    for (name, one), two in zip(candidate.state_dict().items(), wanted.state_dict().values(), strict=True):
        # Images in batches of another size are rounded otherwise; numbers are not.
        torch.testing.assert_close(one, two, rtol=1e-4 if sees else 0, atol=1e-5 if sees else 0, msg=name)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(candidate.denoiser.parameters(), incumbent.denoiser.parameters(), strict=True)
    ]
    assert any(moved)


def test_a_given_condition_counts_as_the_encoders_own() -> None:
    policy = seeing(sees=False)
    g = torch.Generator().manual_seed(0)
    window = Window(
        observation=Observation(proprio=torch.randn(4, 2, 2, generator=g)), actions=torch.rand(4, 3, 2, generator=g),
        valid=torch.ones(4, 3, dtype=torch.bool), reward=torch.zeros(4, 3), next_observation=None, discount=None,
        source=torch.zeros(4, dtype=torch.uint8),
    )  # fmt: skip
    condition = policy.encode(window.observation)
    own = policy.loss(window, torch.Generator().manual_seed(1))[0]
    assert torch.equal(policy.loss(window, torch.Generator().manual_seed(1), condition=condition)[0], own)
    assert not torch.equal(policy.loss(window, torch.Generator().manual_seed(1), condition=condition + 1)[0], own)
    half = [
        policy.loss(window, torch.Generator().manual_seed(1), condition=condition, part=slice(i, i + 2))[0]
        for i in (0, 2)
    ]
    torch.testing.assert_close(torch.stack(half).mean(), own)
