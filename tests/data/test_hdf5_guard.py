"""HDF5 files that would keep their reader for ever, or kill it, are refused by name; all others cost one child process."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from robot_rl.data.formats import hdf5_guard
from robot_rl.data.formats.hdf5_guard import require_walkable
from robot_rl.data.formats.hdf5_source import open_hdf5, read_rows
from robot_rl.errors import DataError


def written(path: Path) -> Path:
    """A small file with groups, attributes, text and chunks."""
    with h5py.File(path, "w") as file:
        for number in range(3):
            group = file.create_group(f"data/demo_{number}")
            group.attrs["num_samples"] = 4
            group.create_dataset("actions", data=np.ones((4, 2), np.float32), chunks=(2, 2))
        file["names"] = ["left", "right"]
        file["data/self"] = file["data"]  # a hard link to a group above it: a walk must not go round
        file["links/gone"] = h5py.SoftLink("/nowhere")
        file["links/elsewhere"] = h5py.ExternalLink("nothing.hdf5", "/x")
    return path


def endless(path: Path) -> Path:
    """The same with a list of free blocks whose entry names itself: libhdf5 follows it for ever (seen with 2.0)."""
    data = bytearray(written(path).read_bytes())
    heap = data.index(b"HEAP")
    free, segment = (int.from_bytes(data[heap + at : heap + at + 8], "little") for at in (16, 24))
    assert int.from_bytes(data[segment + free : segment + free + 8], "little") == 1, "no free block to damage"
    data[segment + free : segment + free + 8] = free.to_bytes(8, "little")
    path.write_bytes(data)
    return path


def walker(*lines: str) -> tuple[str, ...]:
    """A stand-in for the child."""
    return (sys.executable, "-c", "\n".join(["import os, sys, time", *lines]))


def test_an_endless_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_guard, "STALL_S", 8.0)
    path = endless(tmp_path / "a.hdf5")
    with pytest.raises(DataError, match=r"a\.hdf5: expected a whole HDF5 file, got one .*(no progress|absurd memory)"):
        open_hdf5(path)


def test_an_intact_file_opens_and_is_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.hdf5")
    with open_hdf5(path) as file:
        assert read_rows(file, "data/demo_1/actions", where="a").shape == (4, 2)
    monkeypatch.setattr(hdf5_guard, "WALK", walker("print(0, flush=True)", "os.abort()"))
    open_hdf5(path).close()
    with h5py.File(path, "a") as file:
        file["more"] = 1
    with pytest.raises(DataError, match="ends the process of its reader"):
        open_hdf5(path)


def test_a_child_that_says_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_guard, "STALL_S", 0.5)
    monkeypatch.setattr(hdf5_guard, "WALK", walker("print(0, flush=True)", "time.sleep(600)"))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"HDF5 made no progress for 0\.5 s"):
        require_walkable([written(tmp_path / "a.hdf5")])
    assert time.monotonic() - began < 60


def test_one_bad_file_among_many_does_not_spoil_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [written(tmp_path / name) for name in ("a.hdf5", "bad.hdf5", "c.hdf5")]
    script = walker(
        f"open({str(tmp_path / 'starts')!r}, 'a').write('x')",
        "for number, path in enumerate(sys.argv[1:]):",
        "    print(number, flush=True)",
        "    if 'bad.hdf5' in path: os._exit(3)",
        "    print(number, 'ok', flush=True)",
    )
    monkeypatch.setattr(hdf5_guard, "WALK", script)
    require_walkable(paths)
    assert (tmp_path / "starts").read_text() == "xx"
    for path in (paths[0], paths[2]):
        require_walkable([path])
    with pytest.raises(DataError, match=r"bad\.hdf5: .*exit code 3"):
        require_walkable([paths[1]])
    assert (tmp_path / "starts").read_text() == "xx"


def test_a_file_that_is_no_hdf5_is_left_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a.hdf5").write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match=r"got Unable to .*open file"):
        open_hdf5(tmp_path / "a.hdf5")
    with pytest.raises(DataError, match="got nothing there"):
        open_hdf5(tmp_path / "b.hdf5")


def test_absurd_sizes_are_named_at_once(tmp_path: Path) -> None:
    """A shape that one flipped bit made: neither a list of all chunks nor an array of all rows is made."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("chunks", (2**40, 2), "f4", chunks=(1024, 2))[:1024] = 1
    wanted = r"1 of 1073741824 chunks, none at \(1024, 0\)"
    with open_hdf5(tmp_path / "a.hdf5") as file, pytest.raises(DataError, match=wanted):
        read_rows(file, "chunks", where="a")
