"""What HDF5 keeps quiet about: order of names, data that were never written or lie in another file, half images."""

from __future__ import annotations

import fcntl
import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from robot_rl.data.formats.hdf5_source import decode_image, named_damage, natural_order, open_hdf5, read_rows
from robot_rl.errors import DataError


def test_natural_order() -> None:
    assert natural_order(["demo_10", "demo_2", "demo_0"], where="x", example="demo_0") == [
        "demo_0",
        "demo_2",
        "demo_10",
    ]
    with pytest.raises(DataError, match="each number once, got demo_01, demo_1"):
        natural_order(["demo_1", "demo_2", "demo_01"], where="x", example="demo_0")
    with pytest.raises(DataError, match="named as demo_0, at least one, got demo, take_3"):
        natural_order(["demo_1", "take_3", "demo"], where="x", example="demo_0")
    with pytest.raises(DataError, match="at least one, got none"):
        natural_order([], where="x", example="demo_0")


def test_data_in_other_files_are_refused(tmp_path: Path) -> None:
    """A virtual dataset reads zeros when its source is gone; external storage can be any file of this computer."""
    with h5py.File(tmp_path / "part.hdf5", "w") as part:
        part["x"] = np.ones(4)
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource(tmp_path / "part.hdf5", "x", shape=(4,))
    (tmp_path / "raw").write_bytes(np.ones(4).tobytes())
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (4,), "f8", external=[(str(tmp_path / "raw"), 0, 32)])
    (tmp_path / "part.hdf5").unlink()
    file = open_hdf5(tmp_path / "a.hdf5")
    assert file["virtual"][()].tolist() == [0, 0, 0, 0]
    with pytest.raises(DataError, match="virtual: expected data in the file itself, got a virtual dataset"):
        read_rows(file, "virtual", where="a")
    with pytest.raises(DataError, match=r"external: expected data in the file itself, got data in .*raw"):
        read_rows(file, "external", where="a")
    file.close()


def test_chunks_that_were_never_written_are_named(tmp_path: Path) -> None:
    """Two dimensions of chunks; a whole one, one of zeros on purpose and one without rows are fine."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("holes", (4, 6), "f4", chunks=(2, 2))[:2] = 1
        file["holes"][2:, :4] = 2
        file.create_dataset("zeros", (4, 6), "f4", chunks=(2, 2))[:] = 0
        file.create_dataset("empty", (0, 6), "f4", chunks=(2, 2), maxshape=(None, 6))
        file.create_dataset("filled", (3,), "f4", fillvalue=7)
    file = open_hdf5(tmp_path / "a.hdf5")
    with pytest.raises(DataError, match=r"holes: .*got 5 of 6 chunks, none at \(2, 4\)"):
        read_rows(file, "holes", where="a")
    with pytest.raises(DataError, match=r"filled: .*none of it \(HDF5 itself reads 7"):
        read_rows(file, "filled", where="a")
    assert read_rows(file, "zeros", where="a", rows=4).shape == (4, 6)
    assert read_rows(file, "empty", where="a").shape == (0, 6)
    file.close()


def test_a_file_that_is_being_written(tmp_path: Path) -> None:
    """A writer of another process holds this lock."""
    h5py.File(tmp_path / "a.hdf5", "w").close()
    with (tmp_path / "a.hdf5").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="Another program is writing it"):
            open_hdf5(tmp_path / "a.hdf5")


def test_packed_data_that_can_not_be_unpacked(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("x", data=np.arange(4000), chunks=(1000,), compression="gzip")
        offset = file["x"].id.get_chunk_info(1).byte_offset
    data = bytearray((tmp_path / "a.hdf5").read_bytes())
    data[offset : offset + 60] = bytes(60)
    (tmp_path / "a.hdf5").write_bytes(data)
    file = open_hdf5(tmp_path / "a.hdf5")
    with pytest.raises(DataError, match="a, x: expected readable data"):
        read_rows(file, "x", where="a")
    file.close()


def test_images() -> None:
    """PNG is exact, grey stays flat, alpha is dropped; padding is no harm, and a half JPEG no image."""
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)

    def packed(array: np.ndarray, kind: str) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format=kind)
        return np.frombuffer(buffer.getvalue(), np.uint8)

    np.testing.assert_array_equal(decode_image(packed(image, "PNG"), where="x"), image)
    assert decode_image(packed(image[..., 0], "PNG"), where="x").shape == (9, 7)
    alpha = np.concatenate([image, image[..., :1]], -1)
    np.testing.assert_array_equal(decode_image(packed(alpha, "PNG"), where="x"), image)
    jpeg = packed(image, "JPEG")
    whole = decode_image(jpeg, where="x")
    np.testing.assert_array_equal(decode_image(np.append(jpeg, np.zeros(50, np.uint8)), where="x"), whole)
    for half in (jpeg[: len(jpeg) // 2], np.append(jpeg[: len(jpeg) // 2], np.zeros(50, np.uint8)), jpeg[:0]):
        with pytest.raises(DataError, match="expected a whole JPEG or PNG"):
            decode_image(half, where="x")


def test_errors_of_ours_pass_through() -> None:
    with pytest.raises(DataError, match="mine"), named_damage("x"):
        raise DataError("mine", expected="", got="", hint="")
    with pytest.raises(DataError, match="x: expected readable data, got KeyError"), named_damage("x"):
        raise KeyError("y")
    with pytest.raises(KeyboardInterrupt), named_damage("x"):
        raise KeyboardInterrupt
