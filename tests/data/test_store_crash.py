"""EpisodeStore when it is killed, stopped at a system call, or out of disk: saved episodes stay, none is half."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError

# Both the killed process and this test make their episodes with this code.
CHILD = """
import sys
import numpy as np
from robot_rl.data.store import EpisodeStore
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

KEYS = {"proprio": ArraySpec("proprio", (40,)), "image/cam": ArraySpec("image/cam", (24, 24, 3), "uint8")}
SEMANTICS = ActionSemantics(ActionKind.delta, DeltaReference.target, "joint", "none", "none", "pd")
SPEC = EnvSpec("Crash-v1", KEYS, ArraySpec("action", (7,)), SEMANTICS, ("a",), "none", 20.0, 100)


def make_episode(number):
    rng = np.random.default_rng(number)
    steps = int(rng.integers(1, 80))
    proprio = rng.standard_normal((steps + 1, 40)).astype(np.float32)
    image = rng.integers(0, 256, (steps + 1, 24, 24, 3), dtype=np.uint8)
    return Episode(
        observation={"proprio": proprio[:-1], "image/cam": image[:-1]},
        final_observation={"proprio": proprio[-1], "image/cam": image[-1]},
        action=rng.standard_normal((steps, 7)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=np.arange(steps) == steps - 1,
        terminated=True,
        truncated=False,
        source=np.ones(steps, np.uint8),
        time=np.arange(steps) / 20.0,
        metadata={"seed": number},
    )


if __name__ == "__main__":
    assert "torch" not in sys.modules
    with EpisodeStore.open_or_create(sys.argv[1], SPEC) as store:
        print("ready", len(store), flush=True)
        while True:
            first = len(store)
            if first % 3:
                store.append(make_episode(first))
            else:
                store.append_many([make_episode(first), make_episode(first + 1)])
            print(len(store), flush=True)
"""
KILLS = 20


@pytest.fixture(scope="module")
def child(tmp_path_factory) -> ModuleType:
    path = tmp_path_factory.mktemp("child") / "child.py"
    path.write_text(CHILD)
    spec = importlib.util.spec_from_file_location("crash_child", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base(child, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.zarr"
    with EpisodeStore.create(path, child.SPEC) as store:
        store.append_many([child.make_episode(i) for i in range(3)])
    return path


@pytest.fixture
def copy(base, tmp_path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy.zarr"))


def assert_episodes(store: EpisodeStore, child: ModuleType, begin: int = 0) -> None:
    for index in range(begin, len(store)):
        got, want = store.episode(index), child.make_episode(index)
        assert got.metadata == want.metadata
        assert got.terminated
        for name in ("action", "reward", "success", "source", "time"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        for key in child.KEYS:
            np.testing.assert_array_equal(got.observation[key], want.observation[key])
            np.testing.assert_array_equal(got.final_observation[key], want.final_observation[key])


def assert_diffusion_policy_invariant(path: Path) -> None:
    (episodes,) = json.loads((path / "meta/episode_ends/.zarray").read_text())["shape"]
    ends = np.fromfile(path / "meta/episode_ends/0", "<i8")[:episodes]
    lengths = {json.loads(file.read_text())["shape"][0] for file in path.glob("data/*/.zarray")}
    assert lengths == {ends[-1]}


def test_sigkill_loses_no_saved_episode_and_leaves_no_half_one(child, tmp_path):
    path, rng, checked = tmp_path / "killed.zarr", np.random.default_rng(0), 0
    for kill, delay in enumerate(rng.uniform(0, 0.15, KILLS)):
        process = subprocess.Popen([sys.executable, child.__file__, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == f"ready {checked}\n"
        promised = int(process.stdout.readline()) if kill % 2 else checked  # every other one dies in a later append
        time.sleep(delay / 2)
        watcher = EpisodeStore.open(path)  # a reader beside the writer sees whole episodes only
        assert_episodes(watcher, child, begin=max(checked, len(watcher) - 2))
        time.sleep(delay / 2)
        process.send_signal(signal.SIGKILL)
        printed = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        promised = int(printed[-1]) if printed else promised
        assert len(EpisodeStore.open(path)) >= promised
        with EpisodeStore.open(path, mode="a") as store:
            assert len(store) >= promised
            assert_episodes(store, child, begin=checked)
            checked = len(store)
        assert_diffusion_policy_invariant(path)
    assert checked >= KILLS // 2
    store = EpisodeStore.open(path)
    assert_episodes(store, child)
    store.verify()
    assert not (path / ".journal").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["killed.zarr"]


class Killed(BaseException):
    """Stands for the end of the process."""


class Fault:
    """Lets a function of os work `after` times and fails for ever after, as a dead process or a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, after: int, error: BaseException) -> None:
        real, self.calls = getattr(os, name), 0

        def function(*args: object) -> object:
            self.calls += 1
            if self.calls > after:
                raise error
            return real(*args)

        monkeypatch.setattr(os, name, function)


def count_calls(child: ModuleType, path: Path, name: str) -> int:
    with pytest.MonkeyPatch.context() as patch, EpisodeStore.open(path, mode="a") as store:
        fault = Fault(patch, name, 10**9, Killed())
        store.append(child.make_episode(3))
        return fault.calls


def moments(total: int, stride: int) -> list[int]:
    """All of the first and last few calls (journal, commit), and some of the many alike in between (chunks)."""
    return sorted({0, 1, 2, *range(3, total, stride), total - 3, total - 2, total - 1})


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_stop_at_a_system_call_is_repaired(child, base, tmp_path, name):
    total = count_calls(child, Path(shutil.copytree(base, tmp_path / "count.zarr")), name)
    assert total > 30
    sizes = set()
    for after in moments(total, 6):
        path = Path(shutil.copytree(base, tmp_path / f"{after}.zarr"))
        store = EpisodeStore.open(path, mode="a")
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, name, after, Killed())
            with pytest.raises(Killed):
                store.append(child.make_episode(3))
        store.close()
        before = len(EpisodeStore.open(path))
        assert before in (3, 4)
        with EpisodeStore.open(path, mode="a") as store:
            assert len(store) >= before
            sizes.add(len(store))
            assert store.append(child.make_episode(len(store))) == len(store) - 1
            assert_episodes(store, child)
        assert_diffusion_policy_invariant(path)
        shutil.rmtree(path)
    assert sizes == {3, 4}  # cut off before and after the journal was there


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_full_disk_is_named_at_any_moment_and_earlier_episodes_stay(child, base, tmp_path, name):
    full = OSError(28, "No space left on device")
    total = count_calls(child, Path(shutil.copytree(base, tmp_path / "count.zarr")), name)
    for after in moments(total, 10):
        path = Path(shutil.copytree(base, tmp_path / f"{after}.zarr"))
        with EpisodeStore.open(path, mode="a") as store:
            with pytest.MonkeyPatch.context() as patch:
                Fault(patch, name, after, full)
                with pytest.raises(DataError, match=rf"{path}.*\d+ bytes.*No space left") as caught:
                    store.append(child.make_episode(3))
            saved = "All episodes are safe" in str(caught.value)
            assert saved or "was not saved; the 3 episodes before it are intact" in str(caught.value)
            assert len(EpisodeStore.open(path)) in ((3, 4) if saved else (3,))
            # The disk has room again: what the error said about the episode is true.
            number = 4 if saved else 3
            assert store.append(child.make_episode(number)) == number
            assert_episodes(store, child)
        shutil.rmtree(path)


def test_full_disk_for_real_in_another_process(child, copy):
    """A limit on the size of files makes the system itself refuse, in the middle of the journal."""
    code = (
        "import resource, sys; from robot_rl.errors import DataError\n"
        f"sys.path.insert(0, {str(Path(child.__file__).parent)!r}); import child\n"
        "store = child.EpisodeStore.open(sys.argv[1], mode='a')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))\n"
        "try: store.append(child.make_episode(3))\n"
        "except DataError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print(store.append(child.make_episode(3)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=True)
    message, index = done.stdout.splitlines()
    assert "File too large" in message
    assert "000000000003.npz" in message
    assert "was not saved" in message
    assert index == "3"
    assert_episodes(EpisodeStore.open(copy), child)


def test_too_little_room_is_refused_before_anything_is_written(child, copy, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with EpisodeStore.open(copy, mode="a") as store:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
        with pytest.raises(DataError, match=r"bytes free.*got 1000000 bytes.*Nothing was written"):
            store.append(child.make_episode(3))
        assert len(store) == 3
        assert not list((copy / ".journal").glob("*.npz"))


def test_create_that_fails_leaves_nothing(child, tmp_path, monkeypatch):
    Fault(monkeypatch, "fsync", 3, OSError(28, "No space left on device"))
    with pytest.raises(DataError, match=r"No space left.*No store was made"):
        EpisodeStore.create(tmp_path / "new.zarr", child.SPEC)
    assert not list(tmp_path.iterdir())


def stop_in_the_fold(child: ModuleType, path: Path) -> Path:
    """Leave a store as a kill does after the journal is durable and some arrays have grown; returns the journal."""
    store = EpisodeStore.open(path, mode="a")
    with pytest.MonkeyPatch.context() as patch:
        Fault(patch, "replace", 12, Killed())
        with pytest.raises(Killed):
            store.append_many([child.make_episode(3), child.make_episode(4)])
    store.close()
    (journal,) = (path / ".journal").glob("*.npz")
    return journal


def test_reader_of_a_store_that_was_cut_off_sees_the_committed_prefix(child, copy, caplog):
    stop_in_the_fold(child, copy)
    with caplog.at_level("INFO"):
        store = EpisodeStore.open(copy)
    assert len(store) == 3
    assert_episodes(store, child)
    assert store.load(["action"])["action"].shape[0] == store.episode_ends[-1]
    assert "mode='a' finishes it" in caplog.text


def test_finishing_twice_is_the_same_as_once(child, copy, tmp_path):
    journal = stop_in_the_fold(child, copy)
    kept = journal.read_bytes()
    with EpisodeStore.open(copy, mode="a") as store:
        assert len(store) == 5
        first = store.content_hash()
    journal.parent.mkdir()
    journal.write_bytes(kept)  # as if the process had died before it removed the journal
    with EpisodeStore.open(copy, mode="a") as store:
        assert len(store) == 5
        assert store.content_hash() == first
        assert_episodes(store, child)
    assert not journal.parent.exists()


def test_damaged_or_foreign_journal_is_named(child, copy):
    journal = stop_in_the_fold(child, copy)
    content = journal.read_bytes()
    journal.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"journal .*000000000003\.npz.*Move this file away"):
        EpisodeStore.open(copy, mode="a")
    journal.unlink()
    journal.with_name("000000000009.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"rows behind episode 2, got episodes 9\.\.10"):
        EpisodeStore.open(copy, mode="a")
