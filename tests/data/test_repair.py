"""Repair: what verifies is kept bit by bit, all damage is named, and what was there stays in the trash."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from camera_episodes import assert_same, camera_episode, camera_spec, files_of

from robot_rl.data import episode_rows as er
from robot_rl.data.damage import survey
from robot_rl.data.repairing import repair
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import trashed
from robot_rl.errors import DataError
from robot_rl.types import Episode

STEPS = 10
SPEC = camera_spec(64)


def make_episode(number: int) -> Episode:
    return camera_episode(number, STEPS, size=64)


EPISODES = [make_episode(number) for number in range(20)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "demos.zarr"
    with EpisodeStore.create(path, SPEC, metadata={"note": "x"}) as store:
        store.append_many(EPISODES)
    return path


@pytest.fixture
def demos(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "demos.zarr"))


def spoil_rows(path: Path, name: str, row: int) -> None:
    """Change one row on the disk, in a chunk that is whole: only the checksum can tell."""
    array = er.array_layout(SPEC, path)[name]
    chunk = row // array.chunk_rows
    rows = array.read(chunk * array.chunk_rows, (chunk + 1) * array.chunk_rows)
    view = rows[row - chunk * array.chunk_rows : row - chunk * array.chunk_rows + 1]
    view[...] = view ^ 1 if rows.dtype.kind in "ub" else view + 1
    ((file, content),) = array.chunk_files(chunk * array.chunk_rows, rows).items()
    file.write_bytes(content)


def set_length(path: Path, name: str, length: int) -> None:
    file = path / name / ".zarray"
    content = json.loads(file.read_text())
    content["shape"][0] = length
    file.write_text(json.dumps(content, indent=1))


def test_a_whole_store_is_left_alone(demos: Path) -> None:
    before = files_of(demos.parent)
    found, report = repair(demos)
    assert (found.is_whole, report, found.declared, found.prefix) == (True, None, 20, 20)
    assert files_of(demos.parent) == before


@pytest.mark.parametrize("keep", ["prefix", "all"])
def test_one_damaged_episode(demos: Path, keep: str) -> None:
    spoil_rows(demos, "data/action", 7 * STEPS + 3)  # in episode 7
    before = files_of(demos.parent)
    found, report = repair(demos, keep=keep, dry_run=True)
    assert list(found.lost) == [7]
    assert found.lost[7].startswith("data/action: checksum ")
    assert (found.prefix, len(found.good)) == (7, 19)
    kept = list(range(7)) if keep == "prefix" else [i for i in range(20) if i != 7]
    assert report is not None
    assert (report.episodes, report.content_hash) == (len(kept), None)
    assert files_of(demos.parent) == before
    ids = EpisodeStore.open(demos).uuids
    found, report = repair(demos, keep=keep)
    with EpisodeStore.open(demos) as store:
        assert len(store) == len(kept)
        for place, number in enumerate(kept):
            assert_same(store.episode(place), EPISODES[number])
        np.testing.assert_array_equal(store.uuids, ids[kept])
        (entry,) = store.metadata["history"]
        assert list(entry["arguments"]["lost"]) == ["7"]
        assert store.metadata["note"] == "x"
    assert dict(files_of(trashed(demos)[0]).items()) == {k.removeprefix("demos.zarr/"): v for k, v in before.items()}
    again, report = repair(demos, keep=keep)  # idempotent
    assert (again.is_whole, report, len(trashed(demos))) == (True, None, 1)


def chunk_of_images(path: Path) -> Path:
    """The second chunk of the camera: rows 170..339 of 200, so episodes 17.. (10 steps each, 170 rows a chunk)."""
    return path / "data" / "image__cam" / "1.0.0.0"


DAMAGES = {
    "missing chunk": (lambda p: chunk_of_images(p).unlink(), r"image__cam.1\.0\.0\.0: no such file", 17),
    "truncated chunk": (lambda p: os.truncate(chunk_of_images(p), 100), r"image__cam.1\.0\.0\.0: a file of 100 bytes", 17),
    "empty chunk": (lambda p: os.truncate(chunk_of_images(p), 0), r"image__cam.1\.0\.0\.0: a file cut off after 0", 17),
    "shape says too little": (lambda p: set_length(p, "data/action", 3), "data/action.*at least|data/action", 20),
    "no .zarray of an array": (lambda p: (p / "data/action/.zarray").unlink(), r"action/\.zarray", 20),
    "no .zarray of the index": (lambda p: (p / "meta/episode_ends/.zarray").unlink(), r"episode_ends/\.zarray", 20),
    "commit marker of an old copy": (lambda p: set_length(p, "meta/episode_ends", 12), "no journal|more", 20),
    "v3 metadata in the root": (lambda p: (p / "zarr.json").write_text("{}"), r"zarr\.json: metadata of zarr format 3", 20),
    "v3 metadata in an array": (
        lambda p: (p / "data/action/zarr.json").write_text("{}"), r"action/zarr\.json: metadata of zarr format 3", 20,
    ),
    "derived index arrays": (
        lambda p: [(p / f"meta/episode_{name}/0").unlink() for name in ("seed", "success", "source")],
        r"episode_seed/0: no such file", 20,
    ),
    "no group file": (lambda p: (p / ".zgroup").unlink(), r"\.zgroup: no such file", 20),
    "final observations": (lambda p: spoil_rows(p, "meta/final_proprio", 5), None, 5),
    "text": (lambda p: spoil_rows(p, "meta/episode_metadata", 4), None, 0),
    "an index row": (lambda p: spoil_rows(p, "meta/episode_ends", 6), "the row of episodes 6", 6),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_prefix_kept(demos: Path, name: str) -> None:
    damage, problem, prefix = DAMAGES[name]
    damage(demos)
    with pytest.raises(DataError), EpisodeStore.open(demos) as store:
        store.verify()
    found = survey(demos)
    assert not found.is_whole
    assert found.prefix == prefix
    if problem is not None:
        assert any(re.search(problem, line) for line in found.problems), found.problems
    if prefix == 0:
        before = files_of(demos.parent)
        with pytest.raises(DataError, match=r"episode 0: meta/episode_metadata: checksum.*--keep all"):
            repair(demos)
        assert files_of(demos.parent) == before
        repair(demos, keep="all")
        assert EpisodeStore.open(demos).seeds.tolist() == list(range(101, 120))
        return
    repair(demos)
    with EpisodeStore.open(demos, mode="a") as store:
        assert len(store) == prefix
        store.verify()
        for index in range(prefix):
            assert_same(store.episode(index), EPISODES[index])
        assert store.append(make_episode(40)) == prefix
    assert survey(demos).is_whole


def test_a_lost_id_is_said_and_made_anew(demos: Path) -> None:
    before = EpisodeStore.open(demos).uuids
    spoil_rows(demos, "meta/episode_uuid", 3)
    found, _report = repair(demos)
    assert not found.lost
    assert any("episode 3: its id" in line for line in found.problems)
    after = EpisodeStore.open(demos).uuids
    assert (after[[0, 1, 2, 4]] == before[[0, 1, 2, 4]]).all()
    assert not (after[3] == before[3]).all()


def test_lost_attributes_need_a_store_of_the_same_spec(demos: Path, filled: Path) -> None:
    (demos / ".zattrs").write_text("{")
    with pytest.raises(DataError, match=r"\.zattrs.*--like STORE"):
        repair(demos)
    found, report = repair(demos, like=filled)
    assert report is not None
    assert (report.episodes, found.prefix) == (20, 20)
    assert EpisodeStore.open(demos).content_hash() == EpisodeStore.open(filled).content_hash()


def cut_off(path: Path) -> Path:
    """A store whose writer died with two episodes in the journal and some arrays grown; returns the journal."""

    class Killed(BaseException):
        pass

    real, calls = os.replace, 0

    def replace(*words: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise Killed
        real(*words)

    store = EpisodeStore.open(path, mode="a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            store.append_many([make_episode(20), make_episode(21)])
    store.close()
    (journal,) = (path / ".journal").glob("*.npz")
    return journal


def test_a_cut_off_append_is_no_damage_and_is_finished(demos: Path) -> None:
    cut_off(demos)
    before = files_of(demos.parent)
    found, report = repair(demos, dry_run=True)
    assert (found.is_whole, found.pending, found.declared, report) == (True, 2, 22, None)
    assert files_of(demos.parent) == before
    repair(demos)
    with EpisodeStore.open(demos) as store:
        assert len(store) == 22
        assert_same(store.episode(21), make_episode(21))
    assert not (demos / ".journal").exists()


def test_episodes_in_the_journal_of_a_damaged_store_are_kept(demos: Path) -> None:
    cut_off(demos)
    spoil_rows(demos, "data/reward", 2 * STEPS)
    found, _report = repair(demos, keep="all")
    assert list(found.lost) == [2]
    with EpisodeStore.open(demos) as store:
        assert store.seeds.tolist() == [100, 101, *range(103, 122)]
        assert_same(store.episode(20), make_episode(21))


def test_a_damaged_journal_is_named(demos: Path) -> None:
    journal = cut_off(demos)
    os.truncate(journal, 100)
    found, _report = repair(demos)
    assert any(journal.name in line for line in found.problems)
    with EpisodeStore.open(demos, mode="a") as store:
        assert len(store) == 20
    assert (trashed(demos)[0] / ".journal" / journal.name).exists()


def test_into_a_target_the_damaged_store_stays(demos: Path, tmp_path: Path) -> None:
    spoil_rows(demos, "data/action", 0)
    before = files_of(demos)
    with pytest.raises(DataError, match="episode 0: data/action"):
        repair(demos, target=tmp_path / "new.zarr")
    repair(demos, target=tmp_path / "new.zarr", keep="all")
    assert files_of(demos) == before
    assert len(EpisodeStore.open(tmp_path / "new.zarr")) == 19


def test_a_store_with_a_writer_is_not_repaired(demos: Path) -> None:
    with EpisodeStore.open(demos, mode="a"), pytest.raises(DataError, match="no other writer"):
        repair(demos)


def test_videos_are_surveyed_and_copied(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "videos.zarr"
    with EpisodeStore.create(path, SPEC, images="video_lossless") as store:
        store.append_many(EPISODES[:4])
        kept = store.videos(1)
    assert survey(path).is_whole
    file = path / "videos" / "image__cam" / "000002.mp4"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    found, _report = repair(path)
    assert list(found.lost) == [2]
    assert "000002.mp4" in found.lost[2]
    with EpisodeStore.open(path) as store:
        assert len(store) == 2
        assert store.videos(1) == kept
        assert_same(store.episode(1), EPISODES[1])
