"""EpisodeStore: what goes in comes out, other readers understand it, and nothing wrong is ever silent."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

SPEC = EnvSpec(
    env_id="StoreTest-v1",
    observation={
        "proprio": ArraySpec("proprio", (4,), low=(-1.0,) * 4, high=(0.1, 1.0, 1.0, 1.0)),
        "state": ArraySpec("state", (6,), units=("m",)),
        "image/front_cam": ArraySpec("image/front_cam", (48, 64, 3), "uint8"),
    },
    action=ArraySpec("action", (3,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "rotvec", "none", "pd_ee_delta"),
    joint_names=("j1", "j2"),
    robot="panda",
    control_hz=20.0,
    max_episode_steps=100,
)
LENGTHS = (7, 1, 300, 12)


def make_episode(number: int, steps: int) -> Episode:
    rng = np.random.default_rng(number)
    frames = {
        "proprio": rng.standard_normal((steps + 1, 4)).astype(np.float32),
        "state": rng.standard_normal((steps + 1, 6)).astype(np.float32),
        "image/front_cam": rng.integers(0, 256, (steps + 1, 48, 64, 3), dtype=np.uint8),
    }
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=rng.standard_normal((steps, 3)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=(np.arange(steps) == steps // 2) & (number % 2 == 0),
        terminated=number % 3 == 0,
        truncated=number % 3 == 1,
        source=np.where(np.arange(steps) == 5, 3, 1).astype(np.uint8),
        time=np.arange(steps) / 20.0,
        metadata={"seed": 1000 + number, "collector": "tëst", "nested": {"a": [1, 2.5, None]}} if number else {},
    )


EPISODES = [make_episode(i, steps) for i, steps in enumerate(LENGTHS)]


def with_field(episode: Episode, **changes: object) -> Episode:
    """A copy with wrong values in it; the annotations would refuse them in the constructor."""
    copy = dataclasses.replace(episode)
    for name, value in changes.items():
        object.__setattr__(copy, name, value)
    return copy


def assert_same(left: Episode, right: Episode) -> None:
    assert dict(left.metadata) == dict(right.metadata)
    assert (left.terminated, left.truncated) == (right.terminated, right.truncated)
    for side in ("observation", "final_observation"):
        assert set(getattr(left, side)) == set(getattr(right, side))
        for key, value in getattr(right, side).items():
            np.testing.assert_array_equal(getattr(left, side)[key], value)
            assert getattr(left, side)[key].dtype == value.dtype
    for name in ("action", "reward", "success", "source", "time"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        assert getattr(left, name).dtype == getattr(right, name).dtype


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "filled.zarr"
    with EpisodeStore.create(path, SPEC, metadata={"note": "hand made"}) as store:
        assert store.append(EPISODES[0]) == 0
        assert store.append_many(EPISODES[1:3]) == [1, 2]
        assert store.append_many([]) == []
        assert store.append(EPISODES[3]) == 3
    return path


@pytest.fixture
def copy(filled, tmp_path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "copy.zarr"))


def files_of(path: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.name != "lock"
    }


def test_round_trip_is_bit_equal(filled):
    with EpisodeStore.open(filled) as store:
        assert len(store) == 4
        for index, episode in enumerate(EPISODES):
            assert_same(store.episode(index), episode)
        assert store.lengths.tolist() == list(LENGTHS)
        assert store.episode_ends.tolist() == [7, 8, 308, 320]
        assert store.success.tolist() == [True, False, True, False]
        assert store.seeds.tolist() == [-1, 1001, 1002, 1003]
        assert store.spec == SPEC
        assert store.metadata == {"note": "hand made"}
        store.verify()


def test_load_gives_whole_arrays(filled):
    with EpisodeStore.open(filled) as store:
        loaded = store.load(["image/front_cam", "action", "done", "truncated", "timestamp", "final/state"])
        np.testing.assert_array_equal(
            loaded["image/front_cam"], np.concatenate([e.observation["image/front_cam"] for e in EPISODES])
        )
        np.testing.assert_array_equal(loaded["action"], np.concatenate([e.action for e in EPISODES]))
        np.testing.assert_array_equal(loaded["timestamp"], np.concatenate([e.time for e in EPISODES]))
        np.testing.assert_array_equal(loaded["final/state"], np.stack([e.final_observation["state"] for e in EPISODES]))
        assert np.flatnonzero(loaded["done"]).tolist() == [6, 319]  # episodes 0 and 3, last step
        assert np.flatnonzero(loaded["truncated"]).tolist() == [7]
        with pytest.raises(DataError, match=r"'sate'.*Did you mean 'state'"):
            store.load(["sate"])


def test_diffusion_policy_reads_it(filled):
    """As `ReplayBuffer` does: groups data and meta, one slice per episode from cumulative ends; zarr's own code."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(filled), mode="r")
    assert root.metadata.zarr_format == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # zarr warns of what is no part of a zarr
        assert sorted(name for name, _ in root.members()) == ["data", "meta"]
    ends = root["meta"]["episode_ends"][:]
    assert ends.dtype == np.int64
    assert ends.tolist() == [7, 8, 308, 320]
    for _, array in root["data"].arrays():
        assert array.metadata.zarr_format == 2
        assert array.shape[0] == ends[-1]
        assert array.chunks[1:] == array.shape[1:]
        assert np.prod(array.chunks) * array.dtype.itemsize <= 2 * 1024**2
    assert {name for name, _ in root["data"].arrays()} == {
        *("proprio", "state", "image__front_cam", "action", "reward", "success", "source", "timestamp", "done"),
        "truncated",
    }
    start = 0
    for index, end in enumerate(ends):
        np.testing.assert_array_equal(root["data"]["state"][start:end], EPISODES[index].observation["state"])
        np.testing.assert_array_equal(
            root["data"]["image__front_cam"][start:end], EPISODES[index].observation["image/front_cam"]
        )
        np.testing.assert_array_equal(root["data"]["action"][start:end], EPISODES[index].action)
        start = end
    meta = {name: array[:] for name, array in root["meta"].arrays()}
    assert meta["episode_success"].tolist() == [True, False, True, False]
    assert meta["episode_seed"].tolist() == [-1, 1001, 1002, 1003]
    assert meta["episode_source"].tolist() == [3, 1, 3, 3]
    assert len({bytes(row) for row in meta["episode_uuid"]}) == 4
    np.testing.assert_array_equal(meta["final_state"][2], EPISODES[2].final_observation["state"])
    begin, end = meta["episode_metadata_ends"][1:3]
    assert json.loads(bytes(meta["episode_metadata"][begin:end])) == EPISODES[2].metadata
    assert EnvSpec.from_json(root.attrs["spec"]) == SPEC
    assert root.attrs["action"]["kind"] == "delta"
    assert root.attrs["software"]["robot_rl"]


def test_files_are_format_2_and_compressed_as_promised(filled):
    assert not list(filled.rglob("zarr.json"))
    assert not list(filled.rglob("tmp-*"))
    assert not list(filled.rglob("*.npz"))

    def codec(name: str) -> tuple[str, str] | None:
        stored = json.loads((filled / name / ".zarray").read_text())["compressor"]
        return stored and (stored["id"], stored["cname"])

    assert codec("meta/episode_ends") is None
    assert codec("data/state") == ("blosc", "lz4")
    assert codec("data/image__front_cam") == ("blosc", "zstd")
    assert len(list((filled / "data" / "image__front_cam").glob("*.0.0.0"))) == 2  # 320 frames, 227 a chunk


def test_empty_store(tmp_path):
    with EpisodeStore.open_or_create(tmp_path / "deep" / "empty.zarr", SPEC) as store:
        assert len(store) == 0
        assert store.load(["action", "final/state"])["action"].shape == (0, 3)
        store.verify()
    assert len(EpisodeStore.open(tmp_path / "deep" / "empty.zarr")) == 0


def test_open_or_create_continues(copy):
    with EpisodeStore.open_or_create(copy, SPEC) as store:
        assert store.append(EPISODES[1]) == 4
        assert_same(store.episode(4), EPISODES[1])
    assert len(EpisodeStore.open(copy)) == 5


def test_content_hash_follows_the_content(tmp_path):
    def hash_of(name: str, *episodes: Episode) -> str:
        with EpisodeStore.create(tmp_path / name, SPEC) as store:
            store.append_many(episodes)
            return store.content_hash()

    first = hash_of("a", EPISODES[0], EPISODES[1])
    assert hash_of("b", EPISODES[0], EPISODES[1]) == first
    assert hash_of("c", EPISODES[1], EPISODES[0]) != first
    reward = EPISODES[1].reward.copy()
    reward[0] = np.nextafter(reward[0], np.float32(9))
    assert hash_of("d", EPISODES[0], dataclasses.replace(EPISODES[1], reward=reward)) != first
    assert hash_of("e", EPISODES[0], dataclasses.replace(EPISODES[1], metadata={"seed": 5})) != first


def bad_float(array: np.ndarray, *place: int, value: float = np.nan) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


GOOD = EPISODES[0]
BAD_EPISODES = {
    "nan in state": (
        {"observation": {**GOOD.observation, "state": bad_float(GOOD.observation["state"], 3, 2)}},
        r"episode 4, key 'state', step 3, element \[2\]",
    ),
    "inf in action": (
        {"action": bad_float(GOOD.action, 5, 1, value=np.inf)},
        r"episode 4, key 'action', step 5, element \[1\]",
    ),
    "nan in reward": ({"reward": bad_float(GOOD.reward, 6)}, r"episode 4, key 'reward', step 6"),
    "nan in time": ({"time": bad_float(GOOD.time, 2)}, r"episode 4, key 'timestamp', step 2"),
    "nan in final": (
        {"final_observation": {**GOOD.final_observation, "state": bad_float(GOOD.final_observation["state"], 1)}},
        r"episode 4, key 'final/state', element \[1\]",
    ),
    "time goes back": ({"time": bad_float(GOOD.time, 4, value=0.0)}, r"episode 4, key 'timestamp', step 4"),
    "float64 state": (
        {"observation": {**GOOD.observation, "state": GOOD.observation["state"].astype(np.float64)}},
        r"key 'state'.*float32.*float64",
    ),
    "float image": (
        {"observation": {**GOOD.observation, "image/front_cam": np.zeros((7, 48, 64, 3), np.float32)}},
        r"key 'image/front_cam'.*uint8.*float32",
    ),
    "channels first": (
        {"observation": {**GOOD.observation, "image/front_cam": np.zeros((7, 3, 48, 64), np.uint8)}},
        r"key 'image/front_cam'.*\(7, 48, 64, 3\).*\(7, 3, 48, 64\)",
    ),
    "action size": ({"action": np.zeros((7, 2), np.float32)}, r"key 'action'.*\(7, 3\).*\(7, 2\)"),
    "length differs": ({"reward": np.zeros(6, np.float32)}, r"key 'reward'.*\(7,\).*\(6,\)"),
    "success is int": ({"success": np.zeros(7, np.int64)}, r"key 'success'.*bool.*int64"),
    "unknown source": ({"source": np.full(7, 9, np.uint8)}, r"key 'source', step 0"),
    "not an array": ({"reward": [0.0] * 7}, r"key 'reward'.*list"),
    "missing key": ({"observation": {"state": GOOD.observation["state"]}}, r"episode 4, observation.*front_cam"),
    "extra key": (
        {"final_observation": {**GOOD.final_observation, "depth": np.zeros(3)}},
        r"episode 4, final_observation.*'depth'",
    ),
    "numpy in metadata": ({"metadata": {"score": np.float32(1)}}, r"episode 4, metadata.*JSON"),
    "nan in metadata": ({"metadata": {"score": float("nan")}}, r"episode 4, metadata.*JSON"),
    "text seed": ({"metadata": {"seed": "7"}}, r"episode 4, metadata.*seed"),
    "no steps": ({"action": np.zeros((0, 3), np.float32)}, r"episode 4.*at least one step"),
}


@pytest.mark.parametrize("name", BAD_EPISODES)
def test_a_bad_episode_is_named_and_nothing_changes(filled, name):
    changes, message = BAD_EPISODES[name]
    before = files_of(filled)
    with EpisodeStore.open(filled, mode="a") as store:
        with pytest.raises(DataError, match=message):
            store.append(with_field(GOOD, **changes))
        with pytest.raises(DataError, match=message.replace("episode 4", "episode 5")):
            store.append_many([GOOD, with_field(GOOD, **changes)])
        assert len(store) == 4
    assert files_of(filled) == before


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"control_hz": 10.0}, [r"control_hz: stored 20\.0, new 10\.0"]),
        ({"action": ArraySpec("action", (7,))}, [r"action\.shape: stored \[3\], new \[7\]"]),
        (
            {"action_semantics": dataclasses.replace(SPEC.action_semantics, kind=ActionKind.absolute, frame="tool")},
            ["action_semantics.kind: stored delta, new absolute", "action_semantics.frame: stored base, new tool"],
        ),
        (
            {"observation": {"proprio": SPEC.observation["proprio"], "points": ArraySpec("points", (8, 3))}},
            [
                r"observation\.points\.shape: stored nothing, new \[8, 3\]",
                r"observation\.state\.shape: stored \[6\], new",
            ],
        ),
    ],
)
def test_another_spec_is_refused_with_the_differences(filled, changes, lines):
    before = files_of(filled)
    for _ in range(2):  # the lock is free again after the refusal
        with pytest.raises(DataError) as caught:
            EpisodeStore.open_or_create(filled, dataclasses.replace(SPEC, **changes))
        for line in lines:
            assert caught.match(line)
    assert files_of(filled) == before


def test_create_never_overwrites(filled, tmp_path):
    before = files_of(filled)
    with pytest.raises(DataError, match="Nothing is ever overwritten"):
        EpisodeStore.create(filled, SPEC)
    assert files_of(filled) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        EpisodeStore.create(tmp_path, SPEC)
    with pytest.raises(DataError, match="a file"):
        EpisodeStore.create(tmp_path / "notes.txt", SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nothing at this path.*record or collect"):
        EpisodeStore.open(tmp_path / "no.zarr")
    with pytest.raises(DataError, match="something else"):
        EpisodeStore.open(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["r", "a"])
def test_foreign_store_must_be_imported(tmp_path, mode):
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "pusht.zarr"), mode="w", zarr_format=2)
    root.create_group("data").create_array("action", data=np.zeros((5, 2), np.float32))
    root.create_group("meta").create_array("episode_ends", data=np.array([5]))
    before = files_of(tmp_path)
    with pytest.raises(DataError, match=r"foreign zarr.*must be imported"):
        EpisodeStore.open(tmp_path / "pusht.zarr", mode=mode)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("key", ["action", "reward", "a__b", "a_/b", "../up", "sp ace", ".hidden", "final/x", ""])
def test_keys_that_would_not_come_back_are_refused(tmp_path, key):
    spec = dataclasses.replace(SPEC, observation={key: ArraySpec(key, (2,))})
    with pytest.raises(DataError, match="observation key"):
        EpisodeStore.create(tmp_path / "x.zarr", spec)
    assert not list(tmp_path.iterdir())


def test_spec_and_metadata_must_be_json(tmp_path):
    with pytest.raises(DataError, match="JSON types only"):
        EpisodeStore.create(tmp_path / "x.zarr", SPEC, metadata={"path": Path("x")})
    bad = dataclasses.replace(SPEC, action=ArraySpec("action", (3,), low=(float("-inf"),) * 3, high=(1.0,) * 3))
    with pytest.raises(DataError, match=r"JSON types only.*None for an unknown bound"):
        EpisodeStore.create(tmp_path / "x.zarr", bad)
    assert not list(tmp_path.iterdir())


def test_second_writer_is_refused_and_readers_are_not(copy):
    with EpisodeStore.open(copy, mode="a") as store:
        with pytest.raises(DataError, match=rf"no other writer.*process {os.getpid()}"):
            EpisodeStore.open(copy, mode="a")
        code = (
            "import sys; from robot_rl.data.store import EpisodeStore\n"
            "print(len(EpisodeStore.open(sys.argv[1])), flush=True)\n"
            "EpisodeStore.open(sys.argv[1], mode='a')"
        )
        other = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=False)
        assert other.stdout == "4\n"
        assert "DataError" in other.stderr
        assert "no other writer" in other.stderr
        reader = EpisodeStore.open(copy)
        store.append(EPISODES[1])
        assert len(reader) == 4  # what was committed when it was opened
        assert_same(reader.episode(3), EPISODES[3])
        assert len(EpisodeStore.open(copy)) == 5
        with pytest.raises(DataError, match="mode='a'"):
            reader.append(GOOD)
    with pytest.raises(DataError, match="closed"):
        store.append(GOOD)
    EpisodeStore.open(copy, mode="a").close()


def test_episode_index_out_of_range(filled):
    store = EpisodeStore.open(filled)
    for index in (-1, 4):
        with pytest.raises(DataError, match=r"0\.\.3"):
            store.episode(index)


def _read_in_child(path: str) -> None:
    EpisodeStore.open(path).verify()


def test_a_forked_child_can_read_after_its_parent(filled):
    _read_in_child(str(filled))
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(str(filled),))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def edit(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def edit_shape(path: Path, length: int) -> None:
    content = json.loads(path.read_text())
    content["shape"][0] = length
    path.write_text(json.dumps(content))


def flip(content: bytes, index: int) -> bytes:
    return content[:index] + bytes([content[index] ^ 0x10]) + content[index + 1 :]


# What was done -> (how, what the error must name). Found on open:
DAMAGE_ON_OPEN = {
    "missing chunk": (lambda p: (p / "data/state/0.0").unlink(), "data/state.*no such file"),
    "missing second image chunk": (
        lambda p: (p / "data/image__front_cam/1.0.0.0").unlink(),
        "image__front_cam/1.0.0.0",
    ),
    "missing final": (lambda p: (p / "meta/final_state/0.0").unlink(), "meta/final_state"),
    "half a chunk": (lambda p: edit(p / "data/action/0.0", lambda b: b[: len(b) // 2]), "data/action"),
    "chunk of five bytes": (lambda p: edit(p / "data/reward/0", lambda b: b[:5]), "data/reward.*cut off after 5"),
    "empty chunk": (lambda p: edit(p / "data/done/0", lambda b: b""), "data/done.*cut off after 0"),
    "chunk of another array": (lambda p: shutil.copy(p / "data/action/0.0", p / "data/state/0.0"), "data/state"),
    "half of episode_ends": (lambda p: edit(p / "meta/episode_ends/0", lambda b: b[:16]), "meta/episode_ends.*16"),
    "missing episode_ends": (lambda p: (p / "meta/episode_ends/0").unlink(), "meta/episode_ends"),
    "episode_ends lost a row": (lambda p: edit_shape(p / "meta/episode_ends/.zarray", 3), "episode_ends.*no journal"),
    "episode_ends grew": (lambda p: edit_shape(p / "meta/episode_ends/.zarray", 5), "at least 5 rows, got 4"),
    "episode_ends zeroed": (lambda p: edit(p / "meta/episode_ends/0", lambda b: bytes(len(b))), "growing episode ends"),
    "bit in episode_ends": (lambda p: edit(p / "meta/episode_ends/0", lambda b: flip(b, 16)), "episode 2.*checksum"),
    "data lost rows": (lambda p: edit_shape(p / "data/action/.zarray", 300), "data/action.*at least 320 rows, got 300"),
    "data gained rows": (lambda p: edit_shape(p / "data/action/.zarray", 321), "321 rows in data/action.*no journal"),
    "no array": (lambda p: shutil.rmtree(p / "data/reward"), "data/reward"),
    "broken zarray": (lambda p: edit(p / "data/reward/.zarray", lambda b: b[:20]), "data/reward/.zarray"),
    "other dtype": (
        lambda p: edit(p / "data/reward/.zarray", lambda b: b.replace(b"<f4", b"<i4")),
        "data/reward.*float32.*<i4",
    ),
    "zarr 3 root": (lambda p: (p / "zarr.json").write_text("{}"), "zarr.json.*format 3"),
    "zarr 3 group": (lambda p: (p / "data/zarr.json").write_text("{}"), "data/zarr.json.*format 3"),
    "zarr 3 array": (lambda p: (p / "data/action/zarr.json").write_text("{}"), "data/action/zarr.json.*format 3"),
    "broken zattrs": (lambda p: edit(p / ".zattrs", lambda b: b[:50]), ".zattrs"),
    "zattrs without spec": (
        lambda p: edit(p / ".zattrs", lambda b: b.replace(b'"spec"', b'"spock"')),
        ".zattrs, spec: expected",
    ),
    "newer schema": (
        lambda p: edit(p / ".zattrs", lambda b: b.replace(b'"schema_version": 1', b'"schema_version": 2')),
        "schema version 1, got 2",
    ),
}


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("name", DAMAGE_ON_OPEN)
def test_damage_found_on_open(copy, name, mode):
    damage, message = DAMAGE_ON_OPEN[name]
    damage(copy)
    for _ in range(2):  # the first failure must not leave the lock behind
        with pytest.raises(DataError, match=message):
            EpisodeStore.open(copy, mode=mode)


@pytest.mark.parametrize(
    ("name", "index", "key", "array"),
    [
        ("data/state/0.0", 2000, "state", "data/state"),
        ("data/image__front_cam/0.0.0.0", 500_000, "image/front_cam", "data/image__front_cam"),
        ("meta/final_proprio/0.0", 30, "final/proprio", "meta/final_proprio"),
    ],
)
def test_a_flipped_bit_is_found_when_the_array_is_read(copy, name, index, key, array):
    edit(copy / name, lambda content: flip(content, index))
    store = EpisodeStore.open(copy)
    for read in (lambda: store.load([key]), store.verify, lambda: [store.episode(i) for i in range(4)]):
        with pytest.raises(DataError, match=f"array {array}"):
            read()
    store.load(["action"])  # what is whole stays readable


def test_a_value_changed_by_another_program_is_named(copy):
    zarr = pytest.importorskip("zarr")
    zarr.open_group(str(copy), mode="r+")["data/reward"][9] += 1
    store = EpisodeStore.open(copy)
    with pytest.raises(DataError, match=r"data/reward, episode 2.*checksum"):
        store.load(["reward"])
    assert_same(store.episode(1), EPISODES[1])
    seeds = zarr.open_group(str(copy), mode="r+")["meta/episode_seed"]
    seeds[3] = 7
    with pytest.raises(DataError, match=r"meta/episode_seed.*episode 3"):
        EpisodeStore.open(copy)
