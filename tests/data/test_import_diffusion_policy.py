"""diffusion_policy stores: written with zarr by the calls of its ReplayBuffer, and broken in every way seen in the wild."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numcodecs import Blosc

from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.diffusion_policy import DiffusionPolicySource
from robot_rl.data.formats.importing import import_episodes
from robot_rl.data.formats.spec_card import ArrayCard, FinalObservation, SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, DeltaReference, EnvSpec
from robot_rl.types import Source

LENGTHS = (4, 6, 3)
CARD = SpecCard(
    env_id="PushT-v0",
    robot="pusher",
    control_hz=10.0,
    max_episode_steps=300,
    joint_names=("x", "y"),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "base", "none", "none", "position"),
    action=ArrayCard(keys=("action",), units=("px",), meanings=("target x", "target y")),
    observation={
        "proprio": ArrayCard(keys=("state",), columns=(0, 2), units=("px",), meanings=("agent x", "agent y")),
        "state": ArrayCard(keys=("state", "n_contacts"), units=("1",), meanings=("PushT's state, contacts",)),
        "image/top": ArrayCard(keys=("img",), units=("1",), meanings=("RGB",)),
    },
    source="teleop",
    success="last_step",
)


def content() -> dict[str, np.ndarray]:
    """Keys, types and shapes of pusht_cchi_v7_replay.zarr with smaller images; state[t, d] = t + d / 10."""
    steps = sum(LENGTHS)
    rng = np.random.default_rng(0)
    return {
        "action": np.stack([np.arange(steps), -np.arange(steps)], 1).astype(np.float32),
        "state": (np.arange(steps)[:, None] + np.arange(5) / 10).astype(np.float32),
        "img": rng.integers(0, 256, (steps, 6, 8, 3)).astype(np.float32),
        "keypoint": rng.standard_normal((steps, 9, 2)).astype(np.float32),
        "n_contacts": np.full((steps, 1), 2, np.float32),
    }


def write(path: Path, arrays: dict[str, np.ndarray], *, lengths: tuple[int, ...] = LENGTHS, rows: int = 5) -> Path:
    """As ReplayBuffer.add_episode: arrays of size 0 that grow with every episode; lz4 without shuffle, ends raw."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    data, meta = root.require_group("data"), root.require_group("meta")
    ends = meta.create_array("episode_ends", shape=(0,), dtype="int64", chunks=(512,), compressors=None)
    codec = Blosc(cname="lz4", clevel=5, shuffle=Blosc.NOSHUFFLE)
    stores = {
        key: data.create_array(
            key, shape=(0, *a.shape[1:]), dtype=a.dtype, chunks=(rows, *a.shape[1:]), compressors=codec
        )
        for key, a in arrays.items()
    }
    begin = 0
    for number, length in enumerate(lengths):
        end = begin + length
        for key, values in arrays.items():
            stores[key].resize((end, *values.shape[1:]))
            stores[key][begin:end] = values[begin:end]
        ends.resize((number + 1,))
        ends[-1] = end
        begin = end
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "replay_buffer.zarr", content())


def bring_in(path: Path, target: Path | None, *, card: SpecCard = CARD, **options: Any) -> Any:
    reader = CardReader(DiffusionPolicySource(path, empty_chunks=card.empty_chunks), card)
    try:
        return import_episodes(reader, target, **options)
    finally:
        reader.close()


def as_zip(path: Path) -> Path:
    target = path.with_suffix(".zarr.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(path).as_posix())
    return target


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_arrive(store: Path, tmp_path: Path, packed: bool) -> None:
    """Rows 4..9 are episode 1: five steps, and row 9 as the final observation."""
    report = bring_in(as_zip(store) if packed else store, tmp_path / "out.zarr")
    assert (report.episodes, report.steps, report.successes) == (3, 3 + 5 + 2, 3)
    with EpisodeStore.open(tmp_path / "out.zarr") as result:
        assert result.lengths.tolist() == [3, 5, 2]
        assert result.spec.action_semantics == CARD.action_semantics
        assert result.spec.observation["proprio"].units == ("px",)
        episode = result.episode(1)
    arrays = content()
    np.testing.assert_array_equal(episode.action, arrays["action"][4:9])
    np.testing.assert_array_equal(episode.observation["proprio"], arrays["state"][4:9, :2])
    np.testing.assert_array_equal(episode.observation["state"][:, :5], arrays["state"][4:9])
    assert set(episode.observation["state"][:, 5].tolist()) == {2.0}
    np.testing.assert_array_equal(episode.observation["image/top"], arrays["img"][4:9].astype(np.uint8))
    np.testing.assert_array_equal(episode.final_observation["state"][:5], arrays["state"][9])
    np.testing.assert_allclose(episode.time, [0, 0.1, 0.2, 0.3, 0.4])
    assert episode.success.tolist() == [False] * 4 + [True]
    assert episode.reward.tolist() == [0, 0, 0, 0, 1]
    assert (episode.terminated, episode.truncated) == (True, False)
    assert set(episode.source.tolist()) == {Source.teleop}
    assert any("keypoint" in note for note in report.notes)
    assert any("final observation" in note for note in report.notes)


def test_the_store_reads_back_as_diffusion_policy(store: Path, tmp_path: Path) -> None:
    """Our own store has the same layout: imported again with every row kept, the numbers are those of the source."""
    card = replace(CARD, final_observation=FinalObservation.repeat)
    bring_in(store, tmp_path / "out.zarr", card=card)
    group = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    assert group["meta/episode_ends"][:].tolist() == [4, 10, 13]
    np.testing.assert_array_equal(group["data/action"][:], content()["action"])
    with pytest.raises(DataError, match="needs no import"):
        bring_in(tmp_path / "out.zarr", None)


def test_keys_for_success_reward_and_time(tmp_path: Path) -> None:
    arrays = content()
    steps = len(arrays["action"])
    arrays["done"] = np.zeros((steps, 1), bool)
    arrays["done"][[2, 9]] = True  # inside episode 0, and on the last row of episode 1, which is dropped
    arrays["reward"] = np.arange(steps, dtype=np.float64)
    arrays["timestamp"] = 1e9 + np.arange(steps) * 0.125
    path = write(tmp_path / "r.zarr", arrays)
    card = replace(CARD, success="done", reward_key="reward", timestamp_key="timestamp", empty_chunks=("done",))
    bring_in(path, tmp_path / "o.zarr", card=card)
    with EpisodeStore.open(tmp_path / "o.zarr") as result:
        episodes = [result.episode(i) for i in range(3)]
    assert [e.success.tolist() for e in episodes] == [[False, False, True], [False] * 4 + [True], [False] * 2]
    assert [e.terminated for e in episodes] == [True, True, False]
    assert episodes[1].reward.tolist() == [4, 5, 6, 7, 8]
    assert episodes[2].time.tolist() == [0, 0.125]


def test_no_success_known(store: Path, tmp_path: Path) -> None:
    report = bring_in(store, tmp_path / "o.zarr", card=replace(CARD, success="none"))
    assert report.successes == 0
    with EpisodeStore.open(tmp_path / "o.zarr") as result:
        assert not result.spec.has_success


def test_interrupted_import_leaves_nothing(store: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        bring_in(store, tmp_path / "o.zarr", on_episode=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_missing_chunk_is_an_error_though_zarr_reads_zeros(store: Path, tmp_path: Path) -> None:
    """Rows 5..9 of state: episode 1 alone is hit (rows 4..9)."""
    (store / "data/state/1.0").unlink()
    assert not zarr.open_group(str(store), mode="r")["data/state"][5:10].any(), "zarr does read zeros"
    with pytest.raises(DataError) as caught:
        bring_in(store, tmp_path / "out.zarr")
    for part in ("episode 1", "data/state", "1.0"):
        assert part in str(caught.value)
    report = bring_in(store, tmp_path / "out.zarr", skip_bad=True)
    assert report.episodes == 2
    assert "episode 1" in report.left_out[0]


def test_missing_chunk_in_a_zip(store: Path, tmp_path: Path) -> None:
    (store / "data/action/0.0").unlink()
    report = bring_in(as_zip(store), None)
    assert len(report.left_out) == 2, "rows 0..4 belong to episodes 0 and 1"


def test_chunks_of_zeros_left_out_on_purpose(tmp_path: Path) -> None:
    arrays = content()
    arrays["n_contacts"][:] = 0
    path = write(tmp_path / "r.zarr", arrays)  # zarr 3 writes no chunk that is all zeros
    assert not (path / "data/n_contacts/0.0").exists()
    with pytest.raises(DataError, match="empty_chunks"):
        bring_in(path, tmp_path / "o.zarr")
    assert bring_in(path, tmp_path / "o.zarr", card=replace(CARD, empty_chunks=("n_contacts",))).episodes == 3


def test_damaged_chunk_is_named(store: Path) -> None:
    chunk = store / "data/img/2.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    (text,) = bring_in(store, None).left_out
    assert "episode 2" in text
    assert "data/img" in text


def test_nan_is_named_by_episode_step_and_key(tmp_path: Path) -> None:
    arrays = content()
    arrays["state"][7, 3] = np.nan
    path = write(tmp_path / "r.zarr", arrays)
    with pytest.raises(DataError, match=r"episode 1, key 'state', step 3, element \[3\]"):
        bring_in(path, tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()


def set_ends(path: Path, values: list[int]) -> None:
    meta = zarr.open_group(str(path), mode="r+")["meta"]
    meta["episode_ends"].resize((len(values),))
    meta["episode_ends"][:] = np.array(values)


@pytest.mark.parametrize(
    ("ends", "parts"),
    [([4, 3, 13], ["episode 1", "4", "3"]), ([-1, 4, 13], ["episode 0", "-1"]), ([4, 6, 3], ["episode 2", "lengths"])],
)
def test_ends_that_go_back(store: Path, ends: list[int], parts: list[str]) -> None:
    set_ends(store, ends)
    with pytest.raises(DataError) as caught:
        bring_in(store, None)
    for part in parts:
        assert part in str(caught.value)


def test_ends_beyond_the_data(store: Path, tmp_path: Path) -> None:
    set_ends(store, [4, 10, 15])
    with pytest.raises(DataError, match=r"episode 2.*rows up to 15.*13 rows"):
        bring_in(store, tmp_path / "o.zarr")
    assert bring_in(store, tmp_path / "o.zarr", skip_bad=True).episodes == 2


def test_empty_episode_and_rows_behind_the_last(store: Path) -> None:
    set_ends(store, [4, 4, 11])
    report = bring_in(store, None)
    assert report.episodes == 2
    assert "episode 1" in report.left_out[0]
    assert any(note.startswith("2 rows behind") for note in report.notes)


def test_pickled_objects_are_never_read(store: Path) -> None:
    info = json.loads((store / "data/state/.zarray").read_text())
    (store / "data/state/.zarray").write_text(json.dumps(info | {"compressor": {"id": "pickle", "protocol": 5}}))
    with pytest.raises(DataError, match="pickle"):
        bring_in(store, None)
    (store / "data/state/.zarray").write_text(json.dumps(info | {"dtype": "|O"}))
    with pytest.raises(DataError, match="Python objects"):
        bring_in(store, None)


def test_codec_that_is_not_installed_names_the_package(store: Path) -> None:
    info = json.loads((store / "data/img/.zarray").read_text())
    (store / "data/img/.zarray").write_text(
        json.dumps(info | {"compressor": {"id": "imagecodecs_jpegxl", "level": 99}})
    )
    report = bring_in(store, None)
    assert len(report.left_out) == 3
    assert "pip install imagecodecs" in report.left_out[0]


def test_zarr_format_3_is_refused(tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "r.zarr"), mode="w", zarr_format=3).require_group("data")
    with pytest.raises(DataError, match="format 3"):
        bring_in(tmp_path / "r.zarr", None)


def test_array_of_format_3_inside_format_2_is_named(store: Path) -> None:
    """What zarr 3 does in a store of format 2 when it is not told."""
    shutil.rmtree(store / "data/action")
    zarr.create_array(str(store / "data/action"), shape=(13, 2), dtype="float32", zarr_format=3)
    with pytest.raises(DataError, match=r"data/action: .* format 3 inside"):
        bring_in(store, None)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda p: shutil.rmtree(p), ["nothing there"]),
        (lambda p: shutil.rmtree(p / "meta"), ["meta/episode_ends"]),
        (lambda p: (p / "data/state/.zarray").write_text("{"), ["data/state/.zarray"]),
        (lambda p: shutil.rmtree(p / "data/state"), ["spec card", "'state'", "n_contacts"]),
    ],
)
def test_not_such_a_store(store: Path, change: Callable[[Path], Any], parts: list[str]) -> None:
    change(store)
    with pytest.raises(DataError) as caught:
        bring_in(store, None)
    for part in parts:
        assert part in str(caught.value)


def test_half_a_zip_and_a_folder_inside_a_zip(store: Path, tmp_path: Path) -> None:
    packed = as_zip(store)
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"whole \.zarr\.zip"):
        bring_in(packed, None)
    with zipfile.ZipFile(tmp_path / "inside.zarr.zip", "w") as archive:
        archive.write(store / ".zgroup", "replay_buffer.zarr/.zgroup")
    with pytest.raises(DataError, match="inside another folder"):
        bring_in(tmp_path / "inside.zarr.zip", None)


def change_observation(**arrays: ArrayCard) -> SpecCard:
    return replace(CARD, observation={key.replace("__", "/"): value for key, value in arrays.items()})


ONE = ("1",)
PROPRIO = CARD.observation["proprio"]


@pytest.mark.parametrize(
    ("card", "parts"),
    [
        (replace(CARD, action=ArrayCard(("actoin",), ONE, ONE)), ["actoin", "action"]),
        (change_observation(state=PROPRIO), ["proprio"]),
        (change_observation(proprio=replace(PROPRIO, columns=(3, 9))), ["columns", "3..9"]),
        (change_observation(proprio=replace(PROPRIO, units=ONE * 3)), ["units", "2 entries", "3"]),
        (change_observation(proprio=replace(PROPRIO, low=(0.0,))), ["low", "2 entries"]),
        (change_observation(proprio=PROPRIO, agent=PROPRIO), ["'agent'", "image/<camera>"]),
        (change_observation(proprio=PROPRIO, image__top=PROPRIO), ["image/top", "(H, W, 3)"]),
        (change_observation(proprio=replace(PROPRIO, units=("???",))), ["proprio", "???"]),
        (replace(CARD, control_hz=0.0), ["control_hz"]),
        (replace(CARD, source="human"), ["human", "teleop"]),
        (replace(CARD, success="state"), ["'state'", "one number per row"]),
    ],
)
def test_card_that_does_not_fit(store: Path, tmp_path: Path, card: SpecCard, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        bring_in(store, tmp_path / "o.zarr", card=card)
    for part in parts:
        assert part in str(caught.value)


def test_images_in_zero_to_one_are_not_guessed(tmp_path: Path) -> None:
    arrays = content()
    arrays["img"] /= 255
    path = write(tmp_path / "r.zarr", arrays)
    with pytest.raises(DataError, match="multiplied by 255"):
        bring_in(path, tmp_path / "o.zarr")


def test_longer_than_the_limit_is_said(store: Path) -> None:
    report = bring_in(store, None, card=replace(CARD, max_episode_steps=4))
    assert (report.over_limit, report.late_success, report.longest_steps) == (1, 1, 5)


def test_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 1.5 MB an episode: 40 episodes need no more memory than 20."""
    import tracemalloc

    from robot_rl.data import committed

    monkeypatch.setattr(committed, "_VERIFY_BYTES", 4 * 1024**2)  # its fixed block would hide what grows

    images = np.zeros((8, 256, 256, 3), np.uint8)
    images[:] = np.arange(256, dtype=np.uint8)[None, :, None, None]
    path, rows = tmp_path / "big.zarr", 40 * 8
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    codec = Blosc(cname="lz4")
    shape = (rows, *images.shape[1:])
    stored = root.create_array("data/img", shape=shape, dtype="uint8", chunks=(8, *shape[1:]), compressors=codec)
    for begin in range(0, rows, 8):
        stored[begin : begin + 8] = images
    for key in ("action", "state"):
        root.create_array(f"data/{key}", data=np.ones((rows, 5), np.float32), chunks=(rows, 5), compressors=codec)
    root.create_array("meta/episode_ends", data=np.arange(8, rows + 1, 8), compressors=None)
    card = replace(CARD, action=ArrayCard(("action",), ONE, ONE))
    card = replace(card, observation={"proprio": PROPRIO, "image/top": CARD.observation["image/top"]})
    peaks = []
    for count in (20, 40):
        tracemalloc.start()
        assert bring_in(path, tmp_path / f"{count}.zarr", card=card, max_episodes=count).episodes == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], peaks


def test_spec_is_json(store: Path) -> None:
    reader = CardReader(DiffusionPolicySource(store), CARD)
    assert EnvSpec.from_json(json.loads(json.dumps(reader.spec.to_json()))) == reader.spec
    reader.close()
