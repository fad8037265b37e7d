"""Mutated datasets: dropped, cut, swapped, renamed and flipped pieces. Same content, or refused by name.

Formats with checksums (our store, and our exports with their sidecars) must never give other content. A foreign layout has
none: two swapped chunks of a zarr are a dataset like any other, so there the share of other content is printed, and only
crashes and hangs fail.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.known import open_source
from robot_rl.data.formats.spec_card import ArrayCard, SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.runs.config import convert_config
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

SEMANTICS = ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "fuzz")
SPEC = EnvSpec(
    env_id="Fuzz",
    observation={"proprio": ArraySpec("proprio", (3,)), "image/top": ArraySpec("image/top", (8, 8, 3), dtype="uint8")},
    action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
    action_semantics=SEMANTICS,
    joint_names=("a", "b", "c"),
    robot="fuzz",
    control_hz=10.0,
    max_episode_steps=50,
)
CARD = SpecCard(
    env_id="Fuzz", robot="fuzz", control_hz=10.0, max_episode_steps=50, joint_names=(), action_semantics=SEMANTICS,
    action=ArrayCard(("action",), ("1",), ("x",)), observation={"proprio": ArrayCard(("state",), ("1",), ("x",))},
    source="teleop", success="last_step",
)  # fmt: skip
KINDS = ("drop", "cut", "swap", "rename", "flip", "zero", "copy")
CHECKED = ("own", "robomimic", "lerobot")


def episode(number: int) -> Episode:
    rng, steps = np.random.default_rng(number), 6 + number
    frames = {
        "proprio": rng.normal(size=(steps + 1, 3)).astype(np.float32),
        "image/top": rng.integers(0, 256, (steps + 1, 8, 8, 3)).astype(np.uint8),
    }
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=rng.uniform(-1, 1, (steps, 2)).astype(np.float32), reward=np.zeros(steps, np.float32),
        success=np.arange(steps) == steps - 1, terminated=True, truncated=False, source=np.zeros(steps, np.uint8),
        time=np.arange(steps) / 10, metadata={"seed": number, "collector": "fuzz"},
    )  # fmt: skip


def make(name: str, folder: Path) -> Path:
    """An intact dataset of a format below `folder`."""
    if name == "diffusion_policy":
        root = zarr.open_group(str(folder / "a.zarr"), mode="w", zarr_format=2)
        rng = np.random.default_rng(0)
        root.create_array("data/state", data=rng.normal(size=(30, 3)).astype(np.float32), chunks=(7, 3))
        root.create_array("data/action", data=rng.normal(size=(30, 2)).astype(np.float32), chunks=(7, 2))
        root.create_array("meta/episode_ends", data=np.array([9, 20, 30]))
        return folder / "a.zarr"
    with EpisodeStore.create(folder / "own.zarr", SPEC) as store:
        store.append_many([episode(number) for number in range(3)])
    if name == "own":
        return folder / "own.zarr"
    with EpisodeStore.open(folder / "own.zarr") as store:
        if name == "robomimic":
            from robot_rl.data.formats.robomimic_writer import write_robomimic

            write_robomimic(store, folder / "out.hdf5")
        else:
            from robot_rl.data.formats.lerobot_writer import write_lerobot

            write_lerobot(store, folder / "out", images="png")
    shutil.rmtree(folder / "own.zarr")
    return folder / ("out.hdf5" if name == "robomimic" else "out")


def content(name: str, path: Path, target: Path) -> str:
    """Hash of everything that reading it gives. Raises DataError when it is refused."""
    if name == "own":
        with EpisodeStore.open(path) as store:
            store.verify()
            return store.content_hash()
    source = open_source(name, path, {})
    try:
        card: Any = CARD if name == "diffusion_policy" else convert_config(SpecCard, dict(source.declared), where="x")
        found = import_episodes(CardReader(source, card), target).content_hash
    finally:
        source.close()
    assert found is not None
    return found


def mutate(path: Path, rng: random.Random) -> str:
    """Damage one piece below `path`, in place."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    file, kind = rng.choice(files), rng.choice(KINDS)
    data = bytearray(file.read_bytes())
    if kind in ("drop", "rename", "copy") and len(files) == 1:
        kind = "flip"
    place = rng.randrange(max(len(data), 1))
    if kind == "drop":
        file.unlink()
    elif kind == "rename":
        file.rename(file.with_name(file.name + "x"))
    elif kind in ("swap", "copy") and len(files) > 1:
        other = rng.choice([f for f in files if f != file])
        theirs = other.read_bytes()
        file.write_bytes(theirs)
        if kind == "swap":
            other.write_bytes(data)
    elif kind == "cut":
        file.write_bytes(data[:place])
    elif data:
        length = 1 if kind == "flip" else rng.choice([16, 256])
        for index in range(place, min(place + length, len(data))):
            data[index] = data[index] ^ (1 << rng.randrange(8)) if kind == "flip" else 0
        file.write_bytes(data)
    return f"{kind} {file.name}"


def fuzz(name: str, folder: Path, *, count: int, seed: int) -> Counter[str]:
    """What became of `count` mutations."""
    (folder / "intact").mkdir()
    intact = make(name, folder / "intact")
    wanted, found = content(name, intact, folder / "wanted.zarr"), Counter[str]()
    rng = random.Random(seed)
    for number in range(count):
        shutil.rmtree(folder / "work", ignore_errors=True)
        shutil.copytree(folder / "intact", folder / "work")
        what = mutate(folder / "work" / intact.name, rng)
        try:
            got = content(name, folder / "work" / intact.name, folder / f"got{number}.zarr")
        except (DataError, ConfigError):  # ConfigError: what a file no longer declares, a card must say
            found["refused"] += 1
        else:
            found["same" if got == wanted else "other"] += 1
            if got != wanted and name in CHECKED:
                found[f"other: {what}"] += 1
        shutil.rmtree(folder / f"got{number}.zarr", ignore_errors=True)
    print(name, dict(found))
    return found


FORMATS = [
    "own", "robomimic", "diffusion_policy",
    pytest.param("lerobot", marks=pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow: extra data")),
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_mutations_are_seen(name: str, tmp_path: Path) -> None:
    found = fuzz(name, tmp_path, count=15, seed=1)
    assert found["refused"] > 0
    assert name not in CHECKED or found["other"] == 0, found


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_500_mutations_over_all_formats(name: str, tmp_path: Path) -> None:
    found = fuzz(name, tmp_path, count=125, seed=2)
    assert found["refused"] > 0
    assert name not in CHECKED or found["other"] == 0, found
