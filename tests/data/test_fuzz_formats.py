"""Mutated datasets: dropped, cut, swapped, renamed, flipped and retyped pieces. Same content, or refused by name.

Formats with checksums (our store, and our exports with their sidecars) must never give other content. A foreign layout has
none: two swapped chunks of a zarr are a dataset like any other, so there the share of other content is printed, and only
crashes and hangs fail. Retyped: another dtype, a number as text, an int as a float, a list as an object.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.known import open_source
from robot_rl.data.formats.maniskill import ManiSkillReader
from robot_rl.data.formats.maniskill_header import read_header
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
MEANINGS = tuple(f"agent.qpos[{column}]" for column in range(3))
TOY = replace(
    SPEC,
    observation={
        "proprio": ArraySpec("proprio", (3,), units=("1",), meanings=tuple(f"qpos[{column}]" for column in range(3))),
        "state": ArraySpec("state", (3,), units=("1",), meanings=MEANINGS),
        "image/top": SPEC.observation["image/top"],
    },
)
KINDS = ("drop", "cut", "swap", "rename", "flip", "zero", "copy", "retype", "retype")
CHECKED = ("own", "video", "video_lossless", "robomimic", "lerobot")


def episode(number: int, *, smooth: bool = False) -> Episode:
    """Random numbers; grey pictures that a lossy codec can keep, or random ones."""
    rng, steps = np.random.default_rng(number), 6 + number
    frames = {
        "proprio": rng.normal(size=(steps + 1, 3)).astype(np.float32),
        "image/top": rng.integers(0, 256, (steps + 1, 8, 8, 3)).astype(np.uint8),
    }
    if smooth:
        grey = (60 + 10 * np.arange(steps + 1) + number).astype(np.uint8)
        frames["image/top"] = np.broadcast_to(grey[:, None, None, None], (steps + 1, 8, 8, 3)).copy()
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
    if name == "maniskill":
        return maniskill(folder)
    images = name if name.startswith("video") else "arrays"
    with EpisodeStore.create(folder / "own.zarr", SPEC, images=images) as store:
        store.append_many([episode(number, smooth=images == "video") for number in range(3)])
    if name in ("own", "video", "video_lossless"):
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


def maniskill(folder: Path) -> Path:
    """A recording of ManiSkill's layout, nested and with a camera; it has no checksums."""
    h5py = pytest.importorskip("h5py")
    entries = []
    with h5py.File(folder / "t.h5", "w") as file:
        for number in range(3):
            one, group = episode(number), file.create_group(f"traj_{number}")
            frames = {
                key: np.concatenate([rows, one.final_observation[key][None]]) for key, rows in one.observation.items()
            }
            group["obs/agent/qpos"] = frames["proprio"]
            group.create_dataset("obs/sensor_data/top/rgb", data=frames["image/top"], compression="gzip")
            group["actions"], group["success"] = one.action, one.success
            group["terminated"], group["truncated"] = one.success, np.zeros(len(one), bool)
            entries.append(
                {"episode_id": number, "episode_seed": number, "control_mode": "fuzz", "elapsed_steps": len(one)}
            )
    kwargs = {"obs_mode": "rgb", "robot_uids": "fuzz", "sim_config": {"control_freq": 10}}
    info = {"env_id": "Fuzz", "env_kwargs": kwargs, "max_episode_steps": 50}
    (folder / "t.json").write_text(json.dumps({"env_info": info, "episodes": entries, "source_type": "human"}))
    return folder / "t.h5"


def content(name: str, path: Path, target: Path) -> str:
    """Hash of everything that reading it gives. Raises DataError when it is refused."""
    if name == "maniskill":
        reader = ManiSkillReader(read_header(path), TOY)
        try:
            found = import_episodes(reader, target).content_hash
        finally:
            reader.close()
        assert found is not None
        return found
    if name in ("own", "video", "video_lossless"):
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


def retyped_json(data: bytes, rng: random.Random) -> bytes:
    """One value of another type: a number as text, an int as a float, a text or list as something else."""
    document = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def visit(tree: Any) -> None:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            places.append((tree, key))
            if isinstance(value, dict | list):
                visit(value)

    visit(document)
    if not places:
        return b"[]"
    tree, key = rng.choice(places)
    value = tree[key]
    if isinstance(value, bool):
        tree[key] = rng.choice([int(value), str(value)])
    elif isinstance(value, int):
        tree[key] = rng.choice([float(value), str(value), [value]])
    elif isinstance(value, float):
        tree[key] = rng.choice([str(value), [value], int(value)])
    elif isinstance(value, str):
        # "<f4" as "<i4": an array of another dtype.
        tree[key] = value.replace("f", "i").replace("u", "i") if value[1:] in ("f4", "f8", "u1", "i8") else [value]
    else:
        tree[key] = rng.choice([None, 0, str(value), list(value) if isinstance(value, dict) else {"0": value}])
    return json.dumps(document).encode()


def retype_hdf5(path: Path, rng: random.Random) -> None:
    """One dataset of another dtype, or one attribute as text or number."""
    import h5py

    names: list[str] = []
    with h5py.File(path, "a") as file:
        file.visit(names.append)
        entry = file[rng.choice(names)]
        if isinstance(entry, h5py.Dataset) and entry.shape and entry.dtype.kind in "biuf":
            rows, name, parent = entry[()], entry.name, entry.parent
            del parent[name]
            parent.file[name] = rows.astype(rng.choice(["f8", "i4", "u1", "S8"]))
        elif len(entry.attrs):
            key = rng.choice(sorted(entry.attrs))
            entry.attrs[key] = rng.choice([str(entry.attrs[key]), 1.5, [1, 2]])
        else:
            entry.attrs["new"] = 1


def retype_table(path: Path, rng: random.Random) -> None:
    """One column of a parquet file of another type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    number = rng.randrange(table.num_columns)
    try:
        kind = rng.choice([pa.float64(), pa.int32(), pa.string()])
        column = table.column(number).cast(kind)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        column = pa.array([str(value) for value in table.column(number).to_pylist()])
    pq.write_table(table.set_column(number, table.column_names[number], column), path)


def retype_npz(path: Path, rng: random.Random) -> None:
    """One array of another dtype."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    name = rng.choice(sorted(arrays))
    arrays[name] = arrays[name].astype(rng.choice(["f8", "i4", "U8"]))
    np.savez(path, **arrays)


def retype_json(path: Path, rng: random.Random) -> None:
    """One value of a JSON file of another type."""
    path.write_bytes(retyped_json(path.read_bytes(), rng))


RETYPE: dict[str, Callable[[Path, random.Random], None]] = {
    ".hdf5": retype_hdf5, ".h5": retype_hdf5, ".parquet": retype_table, ".npz": retype_npz, ".json": retype_json,
}  # fmt: skip


def mutate(path: Path, rng: random.Random) -> str:
    """Damage one piece below `path`, in place."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    file, kind = rng.choice(files), rng.choice(KINDS)
    if kind == "retype":
        # .zattrs, .zarray, .zgroup: names without a suffix.
        file = rng.choice([f for f in files if f.suffix in RETYPE or f.name.startswith(".z")])
        RETYPE.get(file.suffix, retype_json)(file, rng)
        return f"{kind} {file.name}"
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
        # A recording of ManiSkill is two files side by side.
        what = mutate(folder / "work" if name == "maniskill" else folder / "work" / intact.name, rng)
        try:
            got = content(name, folder / "work" / intact.name, folder / f"got{number}.zarr")
        except (DataError, ConfigError):  # ConfigError: what a file no longer declares, a card must say
            found["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name}, mutation {number} ({what}) crashes") from error
        else:
            found["same" if got == wanted else "other"] += 1
            if got != wanted and name in CHECKED:
                found[f"other: {what}"] += 1
        shutil.rmtree(folder / f"got{number}.zarr", ignore_errors=True)
    print(name, dict(found))
    return found


FORMATS = [
    "own", "robomimic", "diffusion_policy", "maniskill",
    pytest.param("video", marks=pytest.mark.skipif(find_spec("av") is None, reason="av: extra data")),
    pytest.param("video_lossless", marks=pytest.mark.skipif(find_spec("av") is None, reason="av: extra data")),
    pytest.param("lerobot", marks=pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow: extra data")),
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_mutations_are_seen(name: str, tmp_path: Path) -> None:
    found = fuzz(name, tmp_path, count=8, seed=1)
    assert found["refused"] > 0
    assert name not in CHECKED or found["other"] == 0, found


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_500_mutations_over_all_formats(name: str, tmp_path: Path) -> None:
    found = fuzz(name, tmp_path, count=72, seed=2)
    assert found["refused"] > 0
    assert name not in CHECKED or found["other"] == 0, found
