"""Cached features: the same numbers, computed once, never those of another encoder or of other data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seen_steps import SPEC, seen_steps

from robot_rl.data import feature_cache
from robot_rl.data.feature_cache import cached_features, encode_windows, encoder_hash
from robot_rl.data.normalizer import Normalizer
from robot_rl.data.transitions import transitions_of
from robot_rl.data.windows import WindowSampler
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.encoder_fusion import EncoderConfig
from robot_rl.policies.encoder_images import ImageEncoderConfig


def seeing(seed: int = 0) -> DiffusionPolicy:
    torch.manual_seed(seed)
    encoder = EncoderConfig(images=ImageEncoderConfig(width=4, num_stages=1, keypoints=3, size=6), proprio_size=4)
    config = DiffusionPolicyConfig(
        history=2, horizon=3, execute=2, hidden_width=8, level_embedding=8, num_levels=10, num_steps=2,
        observation_keys=("proprio", "image/top"), encoder=encoder,
    )  # fmt: skip
    return DiffusionPolicy(config, SPEC, Normalizer.identity({"proprio": 2, "action": 2})).eval()


def windows() -> WindowSampler:
    keys = ("proprio", "image/top")
    return WindowSampler(seen_steps(), history=2, horizon=3, execute=2, keys=keys, episodes=np.arange(3), device="cpu")


def test_large_windows_are_encoded_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, policy = windows(), seeing()
    assert sampler.bytes_per_window == 2 * (2 * 4 + 8 * 8 * 3)
    whole = encode_windows(sampler, policy)
    seen: list[int] = []
    encode = policy.encode
    policy.encode = lambda observation: (seen.append(len(observation.proprio)), encode(observation))[1]  # type: ignore[method-assign, func-returns-value]
    monkeypatch.setattr(feature_cache, "ENCODED_BYTES", 5 * sampler.bytes_per_window)
    for one, two in zip(encode_windows(sampler, policy), whole, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert seen == [5] * 6 + [3] * 2


def test_a_second_run_reads_what_the_first_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = seeing()
    calls: list[int] = []
    plain = encode_windows

    def counted(sampler: WindowSampler, policy: Any) -> Any:
        calls.append(1)
        return plain(sampler, policy)

    monkeypatch.setattr(feature_cache, "encode_windows", counted)

    def ask(policy: DiffusionPolicy, *hashes: str) -> Any:
        return cached_features(windows(), policy, folder=tmp_path / "cache", hashes=hashes)

    first, again = ask(policy, "a", "b"), ask(seeing(), "a", "b")
    assert len(calls) == 1
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    rows = transitions_of(windows(), policy, gamma=0.9, features=first)
    fresh = transitions_of(windows(), policy, gamma=0.9)
    assert all(torch.equal(getattr(rows, name), getattr(fresh, name)) for name in ("feature", "next_feature", "action"))

    # Other data, another order, other weights: computed anew.
    ask(policy, "a", "c"), ask(policy, "b", "a"), ask(seeing(1), "a", "b")
    assert len(calls) == 4
    with torch.no_grad():
        policy.encoder.parts["image/top"].project[0].bias[0] += 1e-6
    assert encoder_hash(policy) != encoder_hash(seeing())
    # What learns elsewhere does not matter.
    other = seeing()
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1.0)
    assert encoder_hash(other) == encoder_hash(seeing())

    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        repaired = ask(seeing(), "a", "b")
    assert "computed again" in caplog.text
    assert torch.equal(repaired[0], first[0])
    ask(seeing(), "a", "b")
    assert len(calls) == 5
    assert not list((tmp_path / "cache").glob("*.tmp"))
