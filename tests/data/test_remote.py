"""Remote stores over fsspec's memory file system: copied whole or not at all, and never written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.remote import is_remote
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

fsspec = pytest.importorskip("fsspec")
SPEC = EnvSpec(
    env_id="Remote",
    observation={"proprio": ArraySpec("proprio", (3,))},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "remote"),
    joint_names=("a", "b", "c"),
    robot="remote",
    control_hz=10.0,
    max_episode_steps=50,
)
NUMBERS = itertools.count()


def episode(number: int) -> Episode:
    frames = np.full((6, 3), number, np.float32) + np.arange(6, dtype=np.float32)[:, None]
    return Episode(
        observation={"proprio": frames[:-1]}, final_observation={"proprio": frames[-1]},
        action=np.full((5, 2), number, np.float32), reward=np.zeros(5, np.float32), success=np.zeros(5, bool),
        terminated=False, truncated=True, source=np.zeros(5, np.uint8), time=np.arange(5) / 10, metadata={"seed": number},
    )  # fmt: skip


class Place:
    """A local store and its copy in the memory file system."""

    def __init__(self, folder: Path) -> None:
        self.local, self.cache = folder / "demos.zarr", folder / "cache"
        self.url = f"memory://bucket{next(NUMBERS)}/demos.zarr"
        self.system = fsspec.filesystem("memory")
        EpisodeStore.create(self.local, SPEC).close()
        self.add(0, 1)

    def add(self, *numbers: int) -> None:
        with EpisodeStore.open(self.local, mode="a") as store:
            store.append_many([episode(number) for number in numbers])
        for file in self.local.rglob("*"):
            if file.is_file():
                self.system.pipe_file(f"{self.url}/{file.relative_to(self.local)}", file.read_bytes())

    def open(self) -> EpisodeStore:
        return EpisodeStore.open(self.url, cache=self.cache)

    def copies(self) -> list[Path]:
        return [path for path in self.cache.glob("*/*") if path.is_dir()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.system.rm(made.url.rsplit("/", 1)[0], recursive=True)


def test_it_reads_as_the_local_one(place: Place) -> None:
    with place.open() as store, EpisodeStore.open(place.local) as local:
        assert store.content_hash() == local.content_hash()
        np.testing.assert_array_equal(store.episode(1).action, episode(1).action)
    assert is_remote(place.url)
    assert not is_remote(place.local)


def test_a_copy_is_made_once_and_anew_when_the_store_grew(place: Place) -> None:
    place.open().close()
    (copy,) = place.copies()
    before = (copy / ".zattrs").stat().st_mtime_ns
    place.open().close()
    assert place.copies() == [copy]
    assert (copy / ".zattrs").stat().st_mtime_ns == before
    place.add(2)
    with place.open() as store:
        assert len(store) == 3
    assert len(place.copies()) == 2


def test_it_is_never_written(place: Place) -> None:
    for write in (
        lambda: EpisodeStore.open(place.url, mode="a"),
        lambda: EpisodeStore.create(place.url, SPEC),
        lambda: EpisodeStore.open_or_create(place.url, SPEC),
    ):
        with pytest.raises(DataError, match="read only"):
            write()


@pytest.mark.parametrize(("name", "byte"), [("data/action/0.0", 40), ("meta/episode_ends/0", 0)])
def test_damage_on_the_other_side_leaves_no_copy(place: Place, name: str, byte: int) -> None:
    content = bytearray(place.system.cat_file(f"{place.url}/{name}"))
    content[byte] ^= 1
    place.system.pipe_file(f"{place.url}/{name}", bytes(content))
    with pytest.raises(DataError, match="memory://"):
        place.open()
    assert place.copies() == []


def test_a_connection_that_breaks_leaves_no_copy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    get = type(place.system).get

    def half(self: object, remote: list[str], local: list[str], **options: object) -> object:
        get(self, remote, local, **options)
        Path(local[0]).write_bytes(Path(local[0]).read_bytes()[:-1])

    monkeypatch.setattr(type(place.system), "get", half)
    with pytest.raises(DataError, match="after the download"):
        place.open()
    assert place.copies() == []
    monkeypatch.undo()
    place.open().close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memory://nothing/here.zarr", "nothing there"),
        ("nowhere://x/y.zarr", "nowhere"),
        ("s3://bucket/x.zarr", "s3fs"),
    ],
)
def test_what_is_missing_is_named(url: str, text: str, tmp_path: Path) -> None:
    if url.startswith("s3") and __import__("importlib.util").util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(DataError, match=text):
        EpisodeStore.open(url, cache=tmp_path)
