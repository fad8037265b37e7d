"""Edits of a store: the right episodes, bit by bit; nothing changes when anything is wrong; every edit can be undone."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from camera_episodes import assert_same, camera_episode, camera_spec, files_of

from robot_rl.data.editing import episode_indices, plan_delete, plan_merge, plan_reencode, plan_split
from robot_rl.data.relabelling import Labels, plan_relabel
from robot_rl.data.rewriting import carry_out
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import restore, trashed
from robot_rl.data.trimming import Trim, plan_trim, trim_episode
from robot_rl.errors import ConfigError, DataError
from robot_rl.specs import ArraySpec
from robot_rl.types import Episode

SPEC = camera_spec(8)


def make_episode(number: int, steps: int = 10) -> Episode:
    return camera_episode(number, steps, size=8)


LENGTHS = (10, 4, 7, 12, 3, 9)
EPISODES = [make_episode(number, steps) for number, steps in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "demos.zarr"
    with EpisodeStore.create(path, SPEC, metadata={"card": {"licence": "MIT"}}) as store:
        store.append_many(EPISODES)
    return path


@pytest.fixture
def demos(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "demos.zarr"))


def test_delete_keeps_the_rest_bit_by_bit_and_can_be_undone(demos: Path) -> None:
    with EpisodeStore.open(demos, mode="a") as store:
        before, uuids = store.content_hash(), store.uuids
        (report,) = carry_out([plan_delete(store, [1, 4])])
    with EpisodeStore.open(demos) as store:
        assert [store.episode(i).metadata["seed"] for i in range(len(store))] == [100, 102, 103, 105]
        for place, number in enumerate((0, 2, 3, 5)):
            assert_same(store.episode(place), EPISODES[number])
        np.testing.assert_array_equal(store.uuids, uuids[[0, 2, 3, 5]])
        store.verify()
        (entry,) = store.metadata["history"]
        assert store.metadata["card"] == {"licence": "MIT"}
    assert (entry["command"], entry["arguments"]) == ("delete", {"episodes": [1, 4]})
    assert entry["sources"] == [{"store": "demos.zarr", "episodes": 6, "content_hash": before}]
    assert entry["software"]["robot_rl"]
    assert (report.episodes, report.steps, report.successes) == (4, 10 + 7 + 12 + 9, 2)
    assert Path(report.trash) == trashed(demos)[0]
    restore(demos)
    with EpisodeStore.open(demos, mode="a") as store:  # and the lock is free
        assert store.content_hash() == before
        assert "history" not in store.metadata
    restore(demos)  # undo of the undo
    assert len(EpisodeStore.open(demos)) == 4
    assert len(trashed(demos)) == 1


@pytest.mark.parametrize("episodes", [[6], [0, 99], [-1], [], [0, 1, 2, 3, 4, 5]])
def test_a_wrong_index_changes_nothing(demos: Path, episodes: list[int]) -> None:
    """huggingface/lerobot#2712: deleting an index that was not there wiped the whole dataset."""
    before = files_of(demos.parent)
    with EpisodeStore.open(demos, mode="a") as store, pytest.raises((DataError, ConfigError)) as caught:
        plan_delete(store, episodes)
    assert files_of(demos.parent) == before
    if 99 in episodes:
        assert "99" in str(caught.value)


def test_an_array_of_another_program_is_named(demos: Path) -> None:
    (demos / "data" / "depth").mkdir()
    with EpisodeStore.open(demos) as store:
        assert plan_delete(store, [0]).notes == ("data/depth is no array of ours and is not copied",)


def test_words_for_episodes() -> None:
    assert episode_indices(["5-7", "3", "6"], 8, where="x") == [3, 5, 6, 7]
    with pytest.raises(DataError, match=r"episodes of 0\.\.4, got 5, 6, 9"):
        episode_indices(["3-6", "9"], 5, where="x")
    for word in ("a", "3-", "7-5", "-1", "1.5"):
        with pytest.raises(ConfigError, match="an index like 3"):
            episode_indices([word], 5, where="x")


def test_dry_run_reads_all_and_writes_nothing(demos: Path) -> None:
    before, calls = files_of(demos.parent), []
    with EpisodeStore.open(demos) as store:
        plan = plan_delete(store, [0], target=demos)
        plan = dataclasses.replace(plan, replaces=True)
        (report,) = carry_out([plan], dry_run=True, on_episode=lambda done, total: calls.append((done, total)))
    assert (report.episodes, report.steps, report.content_hash) == (5, 35, None)
    assert calls == [(i, 5) for i in range(1, 6)]
    assert files_of(demos.parent) == before


def test_damage_found_while_copying_changes_nothing(demos: Path) -> None:
    chunk = demos / "data" / "action" / "0.0"
    content = bytearray(chunk.read_bytes())
    content[200] ^= 1
    chunk.write_bytes(content)
    before = files_of(demos.parent)
    with EpisodeStore.open(demos, mode="a") as store, pytest.raises(DataError, match="action"):
        carry_out([plan_delete(store, [0])])
    assert files_of(demos.parent) == before


def test_too_little_room_is_refused_first(demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    before = files_of(demos.parent)
    with (
        EpisodeStore.open(demos, mode="a") as store,
        pytest.raises(DataError, match=rf"{demos.parent}.*bytes free.*got 1000000 bytes.*Nothing was changed"),
    ):
        carry_out([plan_delete(store, [0])])
    assert files_of(demos.parent) == before


def test_a_rename_that_fails_puts_the_original_back(demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: object, target: object) -> None:
        if Path(target) == demos and ".editing-" in str(source):
            raise OSError(13, "Permission denied")
        real(source, target)

    with EpisodeStore.open(demos, mode="a") as store:
        before = store.content_hash()
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(DataError, match="Permission denied"):
            carry_out([plan_delete(store, [0])])
    assert EpisodeStore.open(demos).content_hash() == before
    assert sorted(p.name for p in demos.parent.iterdir()) == [".trash", "demos.zarr"]


def test_a_writer_is_kept_out_while_a_store_is_edited(demos: Path) -> None:
    shutil.copytree(demos, demos.parent / ".trash" / "demos.zarr.20200101T000000")
    with EpisodeStore.open(demos, mode="a") as store:
        plan = plan_delete(store, [0])

        def on_episode(done: int, total: int) -> None:
            with pytest.raises(DataError, match="no other writer"):
                EpisodeStore.open(demos, mode="a")
            with pytest.raises(DataError, match="no other writer"):
                restore(demos)

        carry_out([plan], on_episode=on_episode)
    with EpisodeStore.open(demos, mode="a") as store:
        assert store.append(make_episode(7)) == 5
    assert not (demos / ".journal").exists()
    assert not list(demos.parent.rglob("writer"))


def test_leftovers_of_a_killed_edit_are_swept(demos: Path, caplog: pytest.LogCaptureFixture) -> None:
    leftover = demos.with_name(".demos.zarr.editing-0123abcd")
    shutil.copytree(demos, leftover)
    with EpisodeStore.open(demos, mode="a") as store:
        carry_out([plan_delete(store, [0])])
    assert not leftover.exists()
    assert "killed edit" in caplog.text


def test_merge_compares_and_keeps_order_and_ids(demos: Path, tmp_path: Path) -> None:
    other = tmp_path / "more.zarr"
    with EpisodeStore.create(other, SPEC, metadata={"card": {"licence": "CC0", "robot": "panda"}}) as store:
        store.append_many([make_episode(20), make_episode(21)])
    before = files_of(demos), files_of(other)
    target = tmp_path / "all.zarr"
    with EpisodeStore.open(demos) as first, EpisodeStore.open(other) as second:
        (report,) = carry_out([plan_merge([first, second], target)])
        ids = np.concatenate([first.uuids, second.uuids])
    with EpisodeStore.open(target) as store:
        for index, episode in enumerate([*EPISODES, make_episode(20), make_episode(21)]):
            assert_same(store.episode(index), episode)
        np.testing.assert_array_equal(store.uuids, ids)
        (entry,) = store.metadata["history"]
    assert entry["sources"][1]["metadata"]["card"] == {"licence": "CC0", "robot": "panda"}
    assert any("'licence' differs" in note and "'MIT' | 'CC0'" in note for note in report.notes)
    assert (files_of(demos), files_of(other)) == before


def test_merge_refuses_other_specs_with_all_differences(demos: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(SPEC, control_hz=20.0, robot="ur5")
    EpisodeStore.create(tmp_path / "other.zarr", other).close()
    with (
        EpisodeStore.open(demos) as first,
        EpisodeStore.open(tmp_path / "other.zarr") as second,
        pytest.raises(DataError) as caught,
    ):
        plan_merge([first, second], tmp_path / "all.zarr")
    for line in ("2 differences", "control_hz: stored 10.0, new 20.0", "robot: stored panda, new ur5"):
        assert line in str(caught.value)


def test_merge_names_duplicates_by_id_and_by_content(demos: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(demos, tmp_path / "copied.zarr"))
    again = tmp_path / "again.zarr"
    with EpisodeStore.create(again, SPEC) as store:  # the same content under a new id, as a second import has it
        store.append_many([make_episode(30), EPISODES[2]])
    with EpisodeStore.open(copied, mode="a") as store:  # the same id with other content
        carry_out([plan_relabel(store, range(6), Labels(reward="sparse"))])
    with EpisodeStore.open(demos) as first, EpisodeStore.open(again) as second, EpisodeStore.open(copied) as third:
        with pytest.raises(DataError) as caught:
            plan_merge([first, second, third], tmp_path / "all.zarr")
        assert "7 duplicates" in str(caught.value)
        assert f"{again}, episode 1 is {demos}, episode 2" in str(caught.value)
        assert f"{copied}, episode 5 is {demos}, episode 5" in str(caught.value)
        (report,) = carry_out([plan_merge([first, second, third], tmp_path / "all.zarr", skip_duplicates=True)])
    assert report.episodes == 7
    assert sum(note.startswith("left out") for note in report.notes) == 7


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ({"a": "0.5", "b": "0.5"}, [3, 3]),
        ({"a": "0.8", "b": "rest"}, [5, 1]),  # 4.8 and 1.2
        ({"a": "0.7", "b": "0.2", "c": "0.1"}, [4, 1, 1]),  # 4.2, 1.2, 0.6
        ({"a": "2", "b": "3", "c": "1"}, [2, 3, 1]),
        ({"a": "2", "b": "rest"}, [2, 4]),
    ],
)
def test_split_by_counts_and_fractions(demos: Path, shares: dict[str, str], counts: list[int]) -> None:
    parts = {demos.parent / name: share for name, share in shares.items()}
    with EpisodeStore.open(demos) as store:
        reports = carry_out(plan_split(store, parts))
    assert [report.episodes for report in reports] == counts
    seeds = [seed for path in parts for seed in EpisodeStore.open(path).seeds.tolist()]
    assert seeds == list(range(100, 106))  # in order, each once


def test_split_at_random_is_seeded_and_by_success(demos: Path) -> None:
    def split(names: str, seed: int) -> list[list[int]]:
        parts = dict(zip((demos.parent / f"{name}{seed}" for name in names), ("3", "3"), strict=True))
        with EpisodeStore.open(demos) as store:
            carry_out(plan_split(store, parts, seed=seed))
        return [EpisodeStore.open(path).seeds.tolist() for path in parts]

    first = split("ab", 0)
    assert first == split("cd", 0)
    assert sorted(first[0] + first[1]) == list(range(100, 106))
    assert first != [[100, 101, 102], [103, 104, 105]]
    assert all(part == sorted(part) for part in first)
    parts = {demos.parent / "good": "success", demos.parent / "bad": "failure"}
    with EpisodeStore.open(demos) as store:
        carry_out(plan_split(store, parts))
    assert [EpisodeStore.open(path).seeds.tolist() for path in parts] == [[100, 102, 104], [101, 103, 105]]


@pytest.mark.parametrize(
    "shares", [["0.5", "0.4"], ["4", "3"], ["2", "0.5"], ["rest", "rest"], ["success"], ["6", "rest"]]
)
def test_split_that_does_not_add_up_writes_nothing(demos: Path, shares: list[str]) -> None:
    before = files_of(demos.parent)
    parts = {demos.parent / str(i): share for i, share in enumerate(shares)}
    with EpisodeStore.open(demos) as store, pytest.raises(DataError, match="Nothing was written"):
        plan_split(store, parts)
    assert files_of(demos.parent) == before


def test_split_is_all_or_none(demos: Path) -> None:
    taken = demos.parent / "b"
    taken.write_text("mine")
    with EpisodeStore.open(demos) as store, pytest.raises(DataError, match="Nothing is ever overwritten"):
        carry_out(plan_split(store, {demos.parent / "a": "3", taken: "3"}))
    assert sorted(p.name for p in demos.parent.iterdir()) == ["b", "demos.zarr"]


def test_trim_by_hand() -> None:
    episode = make_episode(2, 6)
    got = trim_episode(episode, 1, 4, keep_ending=False)
    np.testing.assert_array_equal(got.action, episode.action[1:4])
    np.testing.assert_array_equal(got.observation["proprio"], episode.observation["proprio"][1:4])
    np.testing.assert_array_equal(got.final_observation["proprio"], episode.observation["proprio"][4])
    np.testing.assert_allclose(got.time, [0.0, 0.1, 0.2])
    assert (got.terminated, got.truncated, got.success.any()) == (False, False, False)
    kept = trim_episode(episode, 1, 4, keep_ending=True)
    assert (kept.terminated, kept.truncated) == (True, False)
    assert kept.success.tolist() == [False, False, True]
    np.testing.assert_array_equal(kept.reward, [episode.reward[1], episode.reward[2], episode.reward[5]])
    front = trim_episode(episode, 2, 6, keep_ending=False)
    assert (front.terminated, front.success.tolist()) == (True, [False, False, False, True])
    np.testing.assert_array_equal(front.final_observation["proprio"], episode.final_observation["proprio"])


def test_trim_idle_ends(tmp_path: Path) -> None:
    """Still for 2 steps, moving for 3 with a pause of 1 in between, still for 4."""
    position = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2], np.float32)
    frames = np.stack([position, np.zeros(10), np.linspace(0, 9, 10)], axis=1).astype(np.float32)
    base = make_episode(1, 9)
    episode = dataclasses.replace(
        base,
        observation={**base.observation, "proprio": frames[:-1]},
        final_observation={**base.final_observation, "proprio": frames[-1]},
    )
    assert Trim(idle=0.5, columns=(0, 2)).span(episode) == (2, 5)
    assert Trim(begin=3, idle=0.5, columns=(0, 2)).span(episode) == (4, 5)
    assert Trim(idle=0.5).span(episode) == (0, 9)  # the third column never rests
    begin, stop = Trim(idle=5.0).span(episode)
    assert begin == stop
    with EpisodeStore.create(tmp_path / "x.zarr", SPEC) as store:
        store.append_many([episode, EPISODES[3]])
        (report,) = carry_out([plan_trim(store, [0], Trim(idle=0.5, columns=(0, 2)))])
    with EpisodeStore.open(tmp_path / "x.zarr") as store:
        assert store.lengths.tolist() == [3, 12]
        assert_same(store.episode(1), EPISODES[3])
        assert store.metadata["history"][0]["arguments"]["columns"] == [0, 2]
    assert report.notes == ("1 episodes trimmed, 6 of 21 steps cut off",)


def test_trim_refuses_to_lose_an_episode_or_a_success(demos: Path) -> None:
    before = files_of(demos.parent)
    with EpisodeStore.open(demos, mode="a") as store:
        with pytest.raises(DataError, match=r"episodes 1, 4.*have no step left"):
            plan_trim(store, range(6), Trim(begin=2, end=2))
        with pytest.raises(DataError, match=r"episodes 0, 2.*lose the success.*--keep-ending"):
            plan_trim(store, [0, 1, 2], Trim(end=1))
        with pytest.raises(DataError, match=r"Did you mean 'proprio'"):
            plan_trim(store, [0], Trim(idle=0.1, key="propio"))
        for wrong in (Trim(), Trim(begin=-1), Trim(idle=0.1, columns=(2, 9))):
            with pytest.raises(DataError):
                plan_trim(store, [0], wrong)
    assert files_of(demos.parent) == before


def test_relabel_reward_and_success(demos: Path) -> None:
    with EpisodeStore.open(demos, mode="a") as store:
        (report,) = carry_out([plan_relabel(store, [1, 3], Labels(success="last_step", reward="step_penalty"))])
        assert report.changed == {"data/success": 2, "data/reward": 2}
        assert report.notes == ("only 2 of 6 episodes got this reward: it is not in the card",)
    with EpisodeStore.open(demos) as store:
        assert store.episode(1).reward.tolist() == [-1, -1, -1, 0]
        assert store.success.tolist() == [True, True, True, True, True, False]
        for index in (0, 2, 4, 5):
            assert_same(store.episode(index), EPISODES[index])
        np.testing.assert_array_equal(store.episode(3).action, EPISODES[3].action)
        assert "reward_rule" not in store.metadata["card"]
    labels = Labels(success="none", reward="sparse", source="teleop", instruction="push", card={"operators": 2})
    with EpisodeStore.open(demos, mode="a") as store:
        carry_out([plan_relabel(store, range(6), labels)])
    with EpisodeStore.open(demos) as store:
        assert not store.success.any()
        assert not store.load(["reward"])["reward"].any()
        assert set(store.load(["source"])["source"].tolist()) == {0}
        assert store.episode(0).metadata == {"seed": 100, "instruction": "push"}
        card = store.metadata["card"]
        assert card == {
            "licence": "MIT", "operators": 2, "reward_rule": "sparse: 1 at every step with success, else 0",
        }  # fmt: skip
        assert [entry["command"] for entry in store.metadata["history"]] == ["relabel", "relabel"]


@pytest.mark.parametrize(
    ("rule", "reward"),
    [("sparse", [0, 1, 0, 1]), ("first_success", [0, 1, 0, 0]), ("step_penalty", [-1, 0, -1, 0])],
)
def test_reward_rules(rule: str, reward: list[float]) -> None:
    episode = dataclasses.replace(make_episode(1, 4), success=np.array([False, True, False, True]))
    assert Labels(reward=rule).apply(episode).reward.tolist() == reward
    assert Labels(success="stays").apply(episode).success.tolist() == [False, True, True, True]
    assert Labels(success="last_step").apply(episode).success.tolist() == [False, False, False, True]


def test_relabel_of_the_card_only_changes_no_episode(demos: Path) -> None:
    with EpisodeStore.open(demos, mode="a") as store:
        before = store.content_hash()
        (report,) = carry_out([plan_relabel(store, range(6), Labels(card={"licence": "CC0"}))])
    assert (report.changed, report.content_hash) == ({}, before)
    assert EpisodeStore.open(demos).metadata["card"] == {"licence": "CC0"}
    with EpisodeStore.open(demos) as store, pytest.raises(DataError, match="Did you mean 'sparse'"):
        plan_relabel(store, [0], Labels(reward="sprase"))


def test_reencode_there_and_back(demos: Path) -> None:
    pytest.importorskip("av")
    with EpisodeStore.open(demos, mode="a") as store:
        before = store.content_hash()
        carry_out([plan_reencode(store)])
    with EpisodeStore.open(demos, mode="a") as store:
        assert store.content_hash() == before
        carry_out([plan_reencode(store, images="video_lossless")])
    with EpisodeStore.open(demos, mode="a") as store:
        assert store.images == "video_lossless"
        videos = store.videos(2)
        carry_out([plan_delete(store, [0])])
    with EpisodeStore.open(demos, mode="a") as store:
        assert store.videos(1) == videos  # copied, not encoded again
        assert_same(store.episode(1), EPISODES[2])
        carry_out([plan_reencode(store, images="arrays")])
    with EpisodeStore.open(demos) as store:
        assert store.images == "arrays"
        for index in range(5):
            assert_same(store.episode(index), EPISODES[index + 1])


def test_restore_names_what_there_is(demos: Path) -> None:
    with pytest.raises(DataError, match=r"a former version of demos\.zarr, got none"):
        restore(demos)
    for _ in range(2):  # two within a second get two names
        with EpisodeStore.open(demos, mode="a") as store:
            carry_out([plan_delete(store, [0])])
    newest, oldest = trashed(demos)
    with pytest.raises(DataError, match="Valid"):
        restore(demos, version="demos.zarr.19990101T000000")
    restore(demos, version=oldest.name)
    assert len(EpisodeStore.open(demos)) == 6
    assert newest in trashed(demos)


def test_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy holds a few batches, not the dataset: 20 MB of images in batches of 1 MB."""
    import tracemalloc

    monkeypatch.setattr("robot_rl.data.rewriting._BATCH_BYTES", 2**20)
    monkeypatch.setattr("robot_rl.data.committed._VERIFY_BYTES", 2**20)
    camera = ArraySpec("image/cam", (128, 128, 3), "uint8")
    spec = dataclasses.replace(SPEC, observation={**SPEC.observation, "image/cam": camera})
    image = np.zeros((21, 128, 128, 3), np.uint8)
    bases = [make_episode(number, 20) for number in range(20)]
    episodes = [
        dataclasses.replace(
            base,
            observation={**base.observation, "image/cam": image[:-1]},
            final_observation={**base.final_observation, "image/cam": image[-1]},
        )
        for base in bases
    ]
    with EpisodeStore.create(tmp_path / "big.zarr", spec) as store:
        store.append_many(episodes)
        plan = plan_delete(store, [3])
        tracemalloc.start()
        carry_out([plan])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert 19 * 20 * camera.size > 18e6
    # Each batch is there as read, as rows, in the journal's zip (twice) and in chunks of 2 MB.
    assert peak < 12e6
