"""SIGKILL at seeded random moments: of recording and of edits. A reader beside a writer; one writer; no stale lock.

One warm process imports the code and forks a child for each kill, so a kill costs milliseconds.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import restore, trashed
from robot_rl.errors import DataError

# The forking process, its children and this test make their episodes with this code.
CODE = """
import os
import sys
import numpy as np
from robot_rl.data.editing import plan_delete
from robot_rl.data.rewriting import carry_out
from robot_rl.data.store import EpisodeStore
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

KEYS = {"proprio": ArraySpec("proprio", (12,)), "image/cam": ArraySpec("image/cam", (8, 8, 3), "uint8")}
SEMANTICS = ActionSemantics(ActionKind.delta, DeltaReference.target, "joint", "none", "none", "pd")
SPEC = EnvSpec("Kill-v1", KEYS, ArraySpec("action", (4,)), SEMANTICS, ("a",), "none", 20.0, 100)


def make_episode(number):
    rng = np.random.default_rng(number)
    steps = int(rng.integers(1, 30))
    proprio = rng.standard_normal((steps + 1, 12)).astype(np.float32)
    image = rng.integers(0, 256, (steps + 1, 8, 8, 3), dtype=np.uint8)
    return Episode(
        observation={"proprio": proprio[:-1], "image/cam": image[:-1]},
        final_observation={"proprio": proprio[-1], "image/cam": image[-1]},
        action=rng.standard_normal((steps, 4)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=np.arange(steps) == steps - 1,
        terminated=True,
        truncated=False,
        source=np.ones(steps, np.uint8),
        time=np.arange(steps) / 20.0,
        metadata={"seed": number},
    )


def record(path, promised):
    # promised: one line for each episode that the store said is saved.
    with EpisodeStore.open_or_create(path, SPEC) as store:
        os.write(promised, b"0\\n")
        while True:
            first = len(store)
            if first % 3:
                store.append(make_episode(first))
            else:
                store.append_many([make_episode(first + i) for i in range(3)])
            os.write(promised, b"%d\\n" % len(store))


def edit(path, promised):
    while True:
        with EpisodeStore.open(path, mode="a") as store:
            os.write(promised, b"0\\n")
            carry_out([plan_delete(store, [0])])
        os.write(promised, b"1\\n")


if __name__ == "__main__":
    assert "torch" not in sys.modules
    print("warm", flush=True)
    for line in sys.stdin:
        work, path, pipe = line.split()
        child = os.fork()
        if not child:
            promised = os.open(pipe, os.O_WRONLY)
            try:
                {"record": record, "edit": edit}[work](path, promised)
            finally:
                os._exit(3)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
"""


class Forker:
    """The warm process."""

    def __init__(self, code: Path, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._pipe = folder / "promised"
        os.mkfifo(self._pipe)
        assert self._process.stdout.readline() == "warm\n"

    def start(self, work: str, path: Path) -> tuple[int, int]:
        """Begin work; returns the id of the process and the descriptor of what it promises."""
        self._process.stdin.write(f"{work} {path} {self._pipe}\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        return child, os.open(self._pipe, os.O_RDONLY)

    def kill(self, child: int, promised: int) -> list[int]:
        """End it by SIGKILL; returns all that it had promised."""
        os.kill(child, signal.SIGKILL)
        assert int(self._process.stdout.readline()) == signal.SIGKILL, "it ended by itself"
        text = b""
        while part := os.read(promised, 65536):
            text += part
        os.close(promised)
        return [int(word) for word in text.split()]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("code") / "kill_code.py"
    path.write_text(CODE)
    spec = importlib.util.spec_from_file_location("kill_code", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def forker(code: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    made = Forker(Path(code.__file__), tmp_path_factory.mktemp("pipe"))
    yield made
    made.close()


def assert_episode(store: EpisodeStore, index: int, number: int, code: ModuleType) -> None:
    got, want = store.episode(index), code.make_episode(number)
    assert got.metadata == want.metadata
    assert (got.terminated, got.truncated) == (True, False)
    for name in ("action", "reward", "success", "source", "time"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    for key in code.KEYS:
        np.testing.assert_array_equal(got.observation[key], want.observation[key])
        np.testing.assert_array_equal(got.final_observation[key], want.final_observation[key])


def wait_for(descriptor: int) -> int:
    """The last of what a child has promised so far, at least one line."""
    text = os.read(descriptor, 65536)
    while not text.endswith(b"\n"):
        text += os.read(descriptor, 65536)
    return int(text.split()[-1])


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_sigkill_of_a_recording(kills: int, code: ModuleType, forker: Forker, tmp_path: Path) -> None:
    """Moments are drawn over some commits, which take nearly all of the child's time. Each child goes on where the
    one before was killed, and itself must finish an append that was cut off."""
    path, rng, checked, cut_off = tmp_path / "killed.zarr", np.random.default_rng(6), 0, 0
    for kill, delay_s in enumerate(rng.uniform(0, 0.15, kills)):
        child, promises = forker.start("record", path)
        promised = wait_for(promises)
        time.sleep(delay_s)
        promised = max([promised, *forker.kill(child, promises)])
        before = len(EpisodeStore.open(path))  # what a reader sees, before anyone repairs
        assert before >= promised
        cut_off += any((path / ".journal").glob("*.npz"))
        if kill % 2:  # every other one is left for the next child to finish
            with EpisodeStore.open(path, mode="a") as store:
                assert len(store) >= before
            assert not (path / ".journal").exists()
        store = EpisodeStore.open(path)
        for index in range(checked, len(store)):
            assert_episode(store, index, index, code)
        checked = len(store)
    assert checked >= kills
    assert cut_off >= kills // 20, "the kills missed the commits"
    with EpisodeStore.open(path, mode="a") as store:
        for index in range(len(store)):
            assert_episode(store, index, index, code)
        store.verify()
        assert store.append(code.make_episode(len(store))) == len(store) - 1
    assert [p.name for p in tmp_path.iterdir()] == ["killed.zarr"]


def test_sigkill_of_an_edit(code: ModuleType, forker: Forker, tmp_path: Path) -> None:
    """The child deletes the first episode again and again: what is there is a whole suffix, or `restore` brings it."""
    path, rng, episodes = tmp_path / "edited.zarr", np.random.default_rng(7), 60
    with EpisodeStore.create(path, code.SPEC) as store:
        store.append_many([code.make_episode(number) for number in range(episodes)])
    for delay_s in rng.uniform(0, 0.2, 15):
        child, promises = forker.start("edit", path)
        wait_for(promises)
        time.sleep(delay_s)
        forker.kill(child, promises)
        if not path.exists():  # between the two renames
            restore(path)
        with EpisodeStore.open(path, mode="a") as store:
            store.verify()
            first = episodes - len(store)
            for index in (0, len(store) - 1):
                assert_episode(store, index, first + index, code)
            if len(store) < episodes // 2:
                store.close()
                restore(path, version=trashed(path)[-1].name)
                shutil.rmtree(tmp_path / ".trash")
    with EpisodeStore.open(path, mode="a") as store:
        from robot_rl.data.editing import plan_delete
        from robot_rl.data.rewriting import carry_out

        carry_out([plan_delete(store, [0])])
    assert not list(tmp_path.glob(".edited.zarr.editing-*"))


def test_reader_beside_a_writer(code: ModuleType, forker: Forker, tmp_path: Path) -> None:
    """Two processes: each time the reader opens, it sees whole committed episodes, and never fewer than before."""
    path, seen, sizes = tmp_path / "shared.zarr", 0, set[int]()
    child, promises = forker.start("record", path)
    assert wait_for(promises) == 0
    deadline = time.monotonic() + 60
    while len(sizes) < 12:
        assert time.monotonic() < deadline
        reader = EpisodeStore.open(path)
        assert len(reader) >= seen
        seen = len(reader)
        sizes.add(seen)
        reader.verify()
        for index in range(max(0, seen - 4), seen):
            assert_episode(reader, index, index, code)
        assert reader.load(["action"])["action"].shape[0] == (reader.episode_ends[-1] if seen else 0)
        if len(sizes) == 6:
            with pytest.raises(DataError, match=f"no other writer.*process {child}"):
                EpisodeStore.open(path, mode="a")
    assert seen >= 12
    forker.kill(child, promises)
    with EpisodeStore.open(path, mode="a") as store:  # the lock of a dead process does not hold
        assert len(store) >= seen
        assert store.append(code.make_episode(len(store))) == len(store) - 1
