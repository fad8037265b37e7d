"""Imitation from images and from points, end to end: demonstrations, training, checkpoint, roll-outs, export.

PointReach seen from above. Proprio does not hold the goal, so a policy that is better than a blind one has looked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.data.store import EpisodeStore
from robot_rl.data.transitions import transitions_of
from robot_rl.data.windows import WindowSampler
from robot_rl.envs.point_pictures import cloud, picture
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.runs.checkpoint import load_checkpoint, load_policy
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import collect, export, imitate
from robot_rl.stages.collect import CollectConfig
from robot_rl.stages.export import ExportConfig
from robot_rl.stages.imitate import ImitateConfig

ENV = ["env=point_reach", "env.image_size=24", "env.num_points=16"]
TRAIN = [
    "policy.horizon=2", "policy.execute=1", "policy.hidden_width=64", "policy.num_levels=20", "policy.num_steps=4",
    "policy.prediction=sample", "train.threads=1", "train.batch_size=64", "train.warmup_steps=10",
    "train.learning_rate=0.003", "train.ema_max=0.95",
]  # fmt: skip
POINTS = ["encoder=points", "policy.encoder.points.widths=[32,64]", "policy.encoder.points.use_colour=true"]
RGB = [
    "encoder=rgb", "policy.observation_keys=[proprio,image/top]", "policy.encoder.images.width=8",
    "policy.encoder.images.num_stages=2", "policy.encoder.images.keypoints=8", "policy.encoder.images.jitter=0.05",
]  # fmt: skip
VIT = [
    "encoder=rgb_vit", "policy.observation_keys=[proprio,image/top]", "policy.encoder.images.width=16",
    "policy.encoder.images.num_blocks=1", "policy.encoder.images.crop=16", "policy.history=2",
]  # fmt: skip
REGULARISED = [
    "policy.encoder.representation.reconstruction=0.1", "policy.encoder.representation.bottleneck=0.0001",
    "policy.encoder.representation.anneal_steps=50", "policy.encoder.representation.points=8",
]  # fmt: skip


def opened(root: Path, stage: str) -> RunDirectory:
    return RunDirectory.create(root, stage=stage, task="t", seed=0, config_yaml="{}\n", command=[])


def imitated(root: Path, store: Path, *words: str) -> tuple[Path, dict[str, float]]:
    run = opened(root, "imitate")
    config = load_config(ImitateConfig, [*ENV, *TRAIN, f"dataset={store}", *words], name="imitate")
    return run.path, imitate.run(config, run)["metrics"]


def demonstrated(folder: Path, number: int) -> Path:
    words = [*ENV, "expert=point_reach", f"num_episodes={number}", "num_envs=20", f"dataset={folder / 'demos.zarr'}"]
    collect.run(load_config(CollectConfig, words, name="collect"), opened(folder, "collect"))
    return folder / "demos.zarr"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demonstrated(tmp_path_factory.mktemp("seen"), 40)


@pytest.fixture(scope="module")
def blind(store: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Error of a policy that knows its own place alone."""
    words = ["policy.observation_keys=[proprio]", "train.num_steps=200"]
    return imitated(tmp_path_factory.mktemp("blind"), store, *words)[1]["imitate/val_replay_rmse"]


def test_pictures_show_the_state() -> None:
    state = torch.tensor([[-0.5, 0.5, 0.5, -0.25]])
    image = picture(state, 40)[0].long()
    assert image[10, 10].tolist() == [230, 40, 40]  # x -0.5: column 10; y 0.5: row 10 from the top
    assert image[25, 30].tolist() == [40, 210, 60]
    assert image[0, 0].tolist() == [30, 30, 40]
    red = (image[..., 0] - 30).float() / 200
    assert float(red.sum()) * 0.05**2 == pytest.approx(np.pi * 0.15**2, rel=0.1)  # area of the disc, m^2
    points = cloud(state, 100)[0]
    torch.testing.assert_close(points[:50, :3].mean(0), torch.tensor([-0.5, 0.5, 0.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(points[50:, :3].mean(0), torch.tensor([0.5, -0.25, 0.2]), atol=0.01, rtol=0)
    env = make_env(PointReachConfig(image_size=8, num_points=6), num_envs=2, history=2)
    seen = env.reset([1, 2])
    assert {k: tuple(v.shape) for k, v in seen.arrays().items()} == {
        "proprio": (2, 2, 2), "state": (2, 2, 4), "points": (2, 2, 6, 6), "image/top": (2, 2, 8, 8, 3),
    }  # fmt: skip


def test_a_policy_that_sees_points_is_better_than_a_blind_one(store: Path, blind: float, tmp_path: Path) -> None:
    rolled = ["rollout_episodes=20", "num_envs=20", "train.num_steps=300"]
    path, metrics = imitated(tmp_path, store, *POINTS, *REGULARISED, *rolled)
    assert metrics["imitate/val_replay_rmse"] < 0.5 * blind
    assert metrics["imitate/success_once"] >= 0.4
    policy, spec, _saved = load_policy(path)
    with EpisodeStore.open(store, mode="r") as data:
        keys = policy.config.observation_keys
        sampler = WindowSampler(
            data, history=1, horizon=2, execute=1, keys=keys, episodes=np.arange(5), device="cpu"
        )  # fmt: skip
        decisions = transitions_of(sampler, policy, gamma=0.99)
    assert decisions.feature.shape == (sampler.num_windows, policy.encoder.size)
    assert spec.observation["image/top"].shape == (24, 24, 3)


@pytest.mark.slow
def test_a_policy_that_sees_pictures_is_better_than_a_blind_one(blind: float, tmp_path: Path) -> None:
    store = demonstrated(tmp_path, 150)
    rolled = ["rollout_episodes=40", "num_envs=20", "train.num_steps=800"]
    metrics = imitated(tmp_path, store, *RGB, *rolled)[1]
    assert metrics["imitate/val_replay_rmse"] < 0.4 * blind
    assert metrics["imitate/success_once"] >= 0.5


def test_a_run_killed_in_between_goes_on_bit_equal(store: Path, tmp_path: Path) -> None:
    """Crops, colours, latents and the annealing's step are all part of what a checkpoint holds."""
    words = [*POINTS, *REGULARISED, "policy.observation_keys=[proprio,points,image/top]", *RGB[2:]]
    words += [
        "policy.encoder.images.crop=20",
        "train.batch_size=8",
        "train.checkpoint_every_steps=3",
        "train.num_steps=6",
    ]
    whole, _ = imitated(tmp_path / "whole", store, *words)
    half, _ = imitated(tmp_path / "half", store, *words)
    for name in ("step_000006", "last"):
        target = half / "checkpoints" / name
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            for file in target.iterdir():
                file.unlink()
            target.rmdir()
    config = load_config(ImitateConfig, [*ENV, *TRAIN, f"dataset={store}", *words], name="imitate")
    imitate.run(config, RunDirectory(half))
    one, two = load_checkpoint(whole).tensors, load_checkpoint(half).tensors
    assert int(one["raw"]["encoder.step"]) == 6
    for group in ("policy", "raw"):
        assert all(torch.equal(value, two[group][name]) for name, value in one[group].items())


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(POINTS, id="points", marks=pytest.mark.slow),
        pytest.param(RGB, id="rgb"),
        pytest.param(VIT, id="vit", marks=pytest.mark.slow),
    ],
)
def test_the_exported_graph_takes_bytes_and_metres(words: list[str], store: Path, tmp_path: Path) -> None:
    path, _ = imitated(tmp_path, store, *words, "train.num_steps=3", "policy.num_steps=2")
    run = opened(tmp_path, "export")
    asked: Any = load_config(ExportConfig, [f"policy={path}", f"dataset={store}", "latency_calls=3"], name="export")
    summary = export.run(asked, run)
    assert summary["parity_max_error"] < 1e-4
    import onnx

    model = onnx.load(summary["onnx"])
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    if words is not POINTS:
        assert kinds["image/top"] == onnx.TensorProto.UINT8
        meta = {p.key: p.value for p in model.metadata_props}
        assert json.loads(meta["config"])["observation_keys"] == ["proprio", "image/top"]
    else:
        assert kinds["points"] == onnx.TensorProto.FLOAT
