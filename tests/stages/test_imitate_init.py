"""Imitation that goes on from a policy: same network and normaliser, and it begins where that one stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robot_rl.data.normalizer import unit_actions
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import PolicyError
from robot_rl.fitting.best_of import BestOfPolicy
from robot_rl.policies.baseline_mlp import BaselineMlpConfig, BaselineMlpPolicy
from robot_rl.runs.checkpoint import load_checkpoint, load_policy, save_checkpoint
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.stages import collect, imitate, offline
from robot_rl.stages.collect import CollectConfig
from robot_rl.stages.imitate import ImitateConfig
from robot_rl.stages.offline import OfflineConfig
from robot_rl.workbench.judge_calibrate import in_mode

TRAIN = ["train.batch_size=32", "train.threads=1", "train.warmup_steps=1", "env=point_reach"]


def opened(root: Path, stage: str) -> RunDirectory:
    return RunDirectory.create(root, stage=stage, task="t", seed=0, config_yaml="{}\n", command=[])


def imitated(root: Path, *words: str) -> Path:
    run = opened(root, "imitate")
    imitate.run(load_config(ImitateConfig, [*TRAIN, *words], name="imitate"), run)
    return run.path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets of different starts, and a policy of the first."""
    folder = tmp_path_factory.mktemp("init")
    for name, words in {"near": ["env.shift.scale=0.6"], "far": ["env.shift.xy_m=[0.1,0.1]"]}.items():
        config = load_config(
            CollectConfig,
            ["env=point_reach", "expert=point_reach", "num_episodes=10", f"dataset={folder / name}.zarr", *words],
            name="collect",
        )
        collect.run(config, opened(folder / "collect", "collect"))
    imitated(
        folder / "first", f"dataset={folder / 'near'}.zarr", "policy=mlp", "policy.hidden_width=32", "policy.execute=2",
        "train.num_steps=40",
    )  # fmt: skip
    return folder


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def rmse(path: Path) -> float:
    """Open loop against the recorded actions."""
    return float(RunDirectory(path).read_json("summary.json")["metrics"]["imitate/train_replay_rmse"])


def test_it_begins_with_the_weights_and_keeps_network_and_normaliser(place: Path) -> None:
    first = only(place / "first")
    path = imitated(
        place / "still", f"dataset={place / 'far'}.zarr", f"init={first}", "policy=transformer", "train.num_steps=1",
        "train.learning_rate=1e-12",
    )  # fmt: skip
    old, new = load_checkpoint(first), load_checkpoint(path)
    for name in ("policy", "normalizer"):
        assert new.documents[name] == old.documents[name]
    for name, tensor in old.tensors["policy"].items():
        torch.testing.assert_close(new.tensors["policy"][name], tensor, atol=1e-6, rtol=0)
    with EpisodeStore.open(str(place / "far.zarr"), mode="r") as store:
        assert new.documents["data"]["content_hash"] == store.content_hash()
    assert new.documents["data"]["init"] == str(old.path)
    assert load_policy(path)[0].config.execute == 2


def test_it_learns_from_there(place: Path) -> None:
    """Two hundred steps fit the second data set better than the policy did that began."""
    words = [f"dataset={place / 'far'}.zarr", f"init={only(place / 'first')}", "validation_fraction=0"]
    still = imitated(place / "a", *words, "train.num_steps=1", "train.learning_rate=1e-12")
    tuned = imitated(place / "b", *words, "train.num_steps=200")
    assert rmse(tuned) < 0.8 * rmse(still)


def test_data_without_what_the_policy_never_saw_fits_and_the_policy_keeps_its_own_spec(
    place: Path, tmp_path: Path
) -> None:
    """The policy of a recording with a camera that it does not look through goes on from data without one."""
    first = load_checkpoint(only(place / "first"))
    with EpisodeStore.open(str(place / "far.zarr"), mode="r") as store:
        side = ArraySpec("image/side", (8, 8, 3), "uint8")
        more = replace(store.spec, observation={**store.spec.observation, "image/side": side})
    documents = {**first.documents, "spec": more.to_json()}
    path = save_checkpoint(tmp_path, step=1, tensors={"policy": dict(first.tensors["policy"])}, documents=documents)
    tuned = imitated(tmp_path / "run", f"dataset={place / 'far'}.zarr", f"init={path}", "train.num_steps=1")
    assert EnvSpec.from_json(load_checkpoint(tuned).documents["spec"]) == more


def test_another_task_is_refused(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra pusht)")
    config = load_config(
        CollectConfig,
        ["env=pusht", "env.max_episode_steps=2", "expert=pusht", "num_episodes=1", f"dataset={tmp_path}/other.zarr"],
        name="collect",
    )
    collect.run(config, opened(tmp_path / "collect", "collect"))
    with pytest.raises(PolicyError, match="it was trained with"):
        imitated(
            tmp_path / "run", f"dataset={tmp_path}/other.zarr", f"init={only(place / 'first')}", "only_success=false"
        )


@pytest.mark.parametrize("kind", ["head", "baseline"])
def test_what_has_no_chain_of_denoising_steps_is_refused_by_name(place: Path, tmp_path: Path, kind: str) -> None:
    """A head and a baseline have sampling modes too, but no denoising loss and no chain."""
    policy, spec, _saved = load_policy(only(place / "first"))
    other: Any = policy.one_step_student(1)
    if kind == "baseline":
        other = BaselineMlpPolicy(BaselineMlpConfig(), spec, unit_actions(spec, ("state",)))
    node = {"_target_": f"{type(other).__module__}.{type(other).__name__}", "config": other.config.to_json()}
    documents = {"policy": node, "spec": spec.to_json(), "normalizer": other.normalizer.to_json()}
    path = save_checkpoint(tmp_path, step=1, tensors={"policy": other.state_dict()}, documents=documents)
    store = place / "near.zarr"
    with pytest.raises(PolicyError, match=f"diffusion policy.*{type(other).__name__}"):
        imitated(tmp_path / "run", f"dataset={store}", f"init={path}")
    words = ["env=point_reach", f"policy={path}", "num_episodes=1", f"dataset={tmp_path}/new.zarr", "sigma_min=0.1"]
    with pytest.raises(PolicyError, match="Leave mode and sigma_min out"):
        collect.run(load_config(CollectConfig, words, name="collect"), opened(tmp_path / "collect", "collect"))
    with pytest.raises(PolicyError, match="diffusion policy"):
        in_mode(str(path), OfflineConfig(), device=torch.device("cpu"))
    with pytest.raises(PolicyError, match="diffusion policy"):
        offline.run(OfflineConfig(policy=str(path), datasets=[str(store)]), opened(tmp_path / "offline", "offline"))
    with pytest.raises(PolicyError, match="Leave best_of and critic out"):
        BestOfPolicy(other, critic=None, number=2)
