"""Writes a store as robomimic's HDF5, which `python -m robomimic.scripts.train` reads as it is.

Observations are named obs/proprio, obs/state, obs/points and obs/<camera>_image; in robomimic's config, list the first
two under low_dim and the last under rgb. What robomimic has no place for goes into `/robot_rl` (robomimic_sidecar.py), so
that an import gives back the same episodes, bit by bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.episode_stream import whole_episodes
from robot_rl.data.formats import robomimic_sidecar as sidecar
from robot_rl.data.formats.exporting import appears_whole, card_for, checksum, require_exportable, verify_export
from robot_rl.data.formats.robomimic import RobomimicSource
from robot_rl.data.formats.spec_card import FinalObservation, SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode

_GYM = 2  # robomimic's EnvType of an environment that is not robosuite's


def write_robomimic(
    store: EpisodeStore,
    target: Path,
    *,
    on_episode: Callable[[int, int], None] | None = None,
    done_mode: int = 2,
    normalize: bool = False,
    valid_fraction: float = 0.1,
    seed: int = 0,
    next_obs: bool = True,
) -> dict[str, Any]:
    """Write every episode, read the file back against the store, and rename it to `target`: all or nothing.

    Args:
        store: to write.
        target: the .hdf5 file.
        on_episode: called with (episodes done, episodes in all).
        done_mode: of robomimic: dones at 0 success, 1 the end of each demo, 2 both (as its own data sets have them).
        normalize: scale actions to [-1, 1]; the scale goes into the sidecar and the report.
        valid_fraction: of the demos in mask/valid; at least one when there are two and it is above 0.
        seed: of that split.
        next_obs: write it: half of the file where there are images. BC needs none, IQL, TD3-BC and CQL do.

    Returns:
        Facts for the report: path, episodes, steps, bytes, keys, done_mode, action_scale, masks, notes.

    Raises:
        DataError: something is at `target`, the store is empty or can't come back, actions leave [-1, 1], a full disk.
    """
    _check_request(store, done_mode, valid_fraction)
    names = {key: _name(key) for key in store.spec.observation}
    with appears_whole(target, what="file") as unfinished:
        scale = _scale(store, normalize=normalize)
        card = card_of(store.spec, names, action="actions" if scale is None else sidecar.ACTION)
        masks = split(len(store), valid_fraction=valid_fraction, seed=seed)
        about = {"card": card.to_json(), "done_mode": done_mode, "action_scale": scale, "next_obs": next_obs}
        _write(store, unfinished, names=names, about=about, masks=masks, on_episode=on_episode)
        for _compared in verify_export(
            store, RobomimicSource(unfinished), card, hint="Export to LeRobot, or copy the store."
        ):
            pass
    return {
        "path": str(target),
        "episodes": len(store),
        "steps": int(store.lengths.sum()),
        "bytes": target.stat().st_size,
        "keys": {key: f"obs/{name}" for key, name in names.items()},
        "done_mode": done_mode,
        "action_scale": scale,
        "masks": {name: len(demos) for name, demos in masks.items()},
        "notes": _notes(store, scale, next_obs),
    }


def split(episodes: int, *, valid_fraction: float, seed: int) -> dict[str, list[str]]:
    """mask/train and mask/valid: names of demos, disjoint, all of them, in natural order."""
    count = min(max(round(valid_fraction * episodes), 1), episodes - 1) if valid_fraction > 0 else 0
    valid = set(np.random.default_rng(seed).permutation(episodes)[:count].tolist())
    masks = {"train": [f"demo_{index}" for index in range(episodes) if index not in valid]}
    return masks | ({"valid": [f"demo_{index}" for index in sorted(valid)]} if valid else {})


def card_of(spec: EnvSpec, names: Mapping[str, str], *, action: str) -> SpecCard:
    """The card with which `spec` comes back from the file."""
    card = card_for(
        spec, {key: f"obs/{name}" for key, name in names.items()}, action=action, success=sidecar.SUCCESS,
        reward="rewards", time=sidecar.TIME, source=sidecar.SOURCE,
    )  # fmt: skip
    return replace(card, final_observation=FinalObservation.repeat)


def _check_request(store: EpisodeStore, done_mode: int, valid_fraction: float) -> None:
    if done_mode not in (0, 1, 2) or not 0 <= valid_fraction < 1:
        raise DataError(
            "robomimic", expected="done_mode 0, 1 or 2 and 0 <= valid_fraction < 1",
            got=f"{done_mode} and {valid_fraction}", hint="Correct it.",
        )  # fmt: skip
    require_exportable(store)


def _write(
    store: EpisodeStore,
    path: Path,
    *,
    names: Mapping[str, str],
    about: Mapping[str, Any],
    masks: Mapping[str, list[str]],
    on_episode: Callable[[int, int], None] | None,
) -> None:
    import h5py

    demos = [f"demo_{index}" for index in range(len(store))]
    env_args = {"env_name": store.spec.env_id, "env_version": "", "type": _GYM, "env_kwargs": {}}
    with h5py.File(path, "x") as file:
        data, ours, mask = (file.create_group(name) for name in ("data", sidecar.GROUP, "mask"))
        for index, episode in whole_episodes(store):
            _write_demo(episode, data.create_group(demos[index]), ours.create_group(demos[index]), names, about)
            if on_episode is not None:
                on_episode(index + 1, len(demos))
        data.attrs["total"] = int(store.lengths.sum())
        data.attrs["env_args"] = json.dumps(env_args, indent=4)
        for key, entries in masks.items():
            mask.create_dataset(key, data=np.array(entries, dtype="S"))
        ours.attrs["schema"], ours.attrs["version"] = sidecar.SCHEMA, sidecar.VERSION
        sidecar.write_json(ours, {
            **about, "demos": demos, "metadata": store.metadata, "spec": store.spec.to_json(),
            "content_hash": store.content_hash(),
        })  # fmt: skip
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _write_demo(episode: Episode, demo: Any, ours: Any, names: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """One demo; next_obs is obs one step later, with the final observation last."""
    checksums, steps, scale = {}, len(episode), about["action_scale"]
    for key, name in names.items():
        rows = np.concatenate([episode.observation[key], np.asarray(episode.final_observation[key])[None]])
        demo.create_dataset(f"obs/{name}", data=rows[:-1])
        if about["next_obs"]:
            demo.create_dataset(f"next_obs/{name}", data=rows[1:])
        ours.create_dataset(f"final/{name}", data=rows[-1:])
        checksums[f"obs/{name}"] = checksum(rows)
    ending = np.arange(steps) == steps - 1
    dones = {0: episode.success, 1: ending, 2: episode.success | ending}[about["done_mode"]]
    action = episode.action if scale is None else _scaled(episode.action, scale)
    plain = {"actions": action, "rewards": episode.reward, "dones": dones.astype(np.int64)}
    kept = {"success": episode.success, "source": episode.source, "time": episode.time}
    kept |= {} if scale is None else {"action": episode.action}
    for name, array in plain.items():
        demo.create_dataset(name, data=array)
        checksums[name] = checksum(array)
    for name, array in kept.items():
        ours.create_dataset(name, data=array)
        checksums[f"{sidecar.GROUP}/{name}"] = checksum(array)
    demo.attrs["num_samples"] = steps
    sidecar.write_json(ours, {
        "name": demo.name.rpartition("/")[2], "terminated": episode.terminated, "truncated": episode.truncated,
        "metadata": dict(episode.metadata), "crc32": checksums,
    })  # fmt: skip


def _scale(store: EpisodeStore, *, normalize: bool) -> dict[str, list[float]] | None:
    """Low and high of every element of the action when they are to be scaled, else None."""
    actions = store.load(["action"])["action"].reshape(int(store.lengths.sum()), -1)
    low, high = actions.min(0), actions.max(0)
    if not normalize:
        worst = int(np.argmax(np.maximum(-low, high)))
        if low.min() < -1 or high.max() > 1:
            raise DataError(
                f"{store.path}, action, element {worst}",
                expected="actions in [-1, 1], as robomimic's policies end in tanh",
                got=f"{low[worst]:g} to {high[worst]:g}",
                hint="Export with normalize: actions are scaled, and the scale is kept in the file and in the report.",
            )
        return None
    spec = store.spec.action
    if spec.low is not None and spec.high is not None and (low >= spec.low).all() and (high <= spec.high).all():
        low, high = np.asarray(spec.low), np.asarray(spec.high)
    return {"low": low.astype(np.float64).tolist(), "high": high.astype(np.float64).tolist()}


def _scaled(action: np.ndarray, scale: Mapping[str, list[float]]) -> np.ndarray:
    """Actions (T, A) from [low, high] to [-1, 1]; 0 where they are constant."""
    low, high = np.asarray(scale["low"]), np.asarray(scale["high"])
    width = np.where(high > low, high - low, 1.0)
    scaled: np.ndarray = np.where(high > low, 2 * (action - low) / width - 1, 0.0)
    return np.clip(scaled, -1, 1).astype(np.float32)


def _name(key: str) -> str:
    """Name of ours in obs/: robomimic splits names at "/", and its users look for <camera>_image."""
    return f"{key.removeprefix('image/').replace('/', '__')}_image" if key.startswith("image/") else key


def _notes(store: EpisodeStore, scale: Mapping[str, list[float]] | None, next_obs: bool) -> list[str]:
    notes = ["Rollouts need robomimic's own environments: train with experiment.rollout.enabled=false."]
    if scale is not None:
        notes.append("Actions were scaled to [-1, 1]: a policy of robomimic must be scaled back by action_scale.")
    if not next_obs:
        notes.append("There is no next_obs: train with train.hdf5_load_next_obs=false (BC).")
    if "points" in store.spec.observation:
        notes.append("robomimic 0.3 has no encoder for obs/points: leave it out of its config.")
    return notes
