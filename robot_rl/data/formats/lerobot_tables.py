"""The files of LeRobot v3.0 as our export writes them: parquet in several files, mp4 per camera, tasks and episodes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats.lerobot_layout import import_parquet
from robot_rl.data.formats.lerobot_video import VideoWriter
from robot_rl.errors import DataError

CHUNKS_SIZE = 1000  # files in a folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"


class DataFiles:
    """data/: an episode is a row group, and a file ends before the episode that would make it larger than `limit_bytes`."""

    def __init__(self, path: Path, limit_bytes: float) -> None:
        self._path, self._limit, self._number = path, limit_bytes, -1
        self._writer: Any = None
        self._file: Any = None

    def add(self, columns: Mapping[str, Any]) -> dict[str, int]:
        """Append one episode, feature -> column; returns the number of chunk and file."""
        import pyarrow as arrow

        table = arrow.table({name: column_of(values) for name, values in columns.items()})
        if self._writer is None or self._file.tell() + table.nbytes > self._limit:
            self.close()
            self._number += 1
            file = self._path / DATA_PATH.format(**_place(self._number))
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("xb")
            self._writer = import_parquet().ParquetWriter(self._file, table.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=max(len(table), 1))
        return {f"data/{key}": value for key, value in _place(self._number).items()}

    def close(self) -> None:
        """Finish the open file."""
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = None


class VideoFiles:
    """videos/ of one camera, in files of about `limit_bytes`."""

    def __init__(self, path: Path, name: str, *, fps: float, shape: tuple[int, ...], limit_bytes: float) -> None:
        self._path, self._name, self._fps, self._shape, self._limit = path, name, fps, shape, limit_bytes
        self._number, self._writer = -1, None

    _writer: VideoWriter | None

    def add(self, images: np.ndarray) -> dict[str, Any]:
        """Append the frames of one episode; returns chunk, file and seconds under the names of meta/episodes."""
        if self._writer is None or self._writer.size_bytes > self._limit:
            self.close()
            self._number += 1
            file = self._path / VIDEO_PATH.format(video_key=self._name, **_place(self._number))
            self._writer = VideoWriter(file, fps=self._fps, shape=self._shape, where=f"{self._name}")
        start, stop = self._writer.add(images)
        place = {**_place(self._number), "from_timestamp": start, "to_timestamp": stop}
        return {f"videos/{self._name}/{key}": value for key, value in place.items()}

    def close(self) -> None:
        """Finish the open file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def abort(self) -> None:
        """Let go of the open file as it is."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // CHUNKS_SIZE, "file_index": number % CHUNKS_SIZE}


def column_of(values: Any) -> Any:
    """An arrow array of (T,), (T, 1), (T, D) or (T, M, D) numbers, or of packed images (bytes).

    One number per row is a plain column and D are a list of fixed size, as LeRobot's loader expects them.
    """
    import pyarrow as arrow

    if not isinstance(values, np.ndarray):
        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        return arrow.array([{"bytes": packed, "path": None} for packed in values], type=kind)
    column = arrow.array(np.ascontiguousarray(values).reshape(-1))
    sizes = values.shape[1:] if values.shape[1:] != (1,) else ()
    for place, size in reversed(list(enumerate(sizes))):
        if len(sizes) == 1:
            column = arrow.FixedSizeListArray.from_arrays(column, size)
        else:
            count = int(np.prod(values.shape[: place + 1]))
            column = arrow.ListArray.from_arrays(arrow.array(np.arange(count + 1) * size, arrow.int32()), column)
    return column


def pack_png(images: np.ndarray) -> list[bytes]:
    """Images (T, H, W, 3) uint8 as PNG files. Raises DataError without Pillow."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(
            "LeRobot images", expected="Pillow, which packs PNG", got="no module named PIL",
            hint="pip install 'robot-rl[data]'",
        ) from error  # fmt: skip
    packed = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG", compress_level=1)
        packed.append(file.getvalue())
    return packed


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """meta/tasks.parquet: the text is the index of the table, as pandas would write it."""
    import pyarrow as arrow

    table = arrow.table({"task_index": arrow.array(range(len(tasks)), arrow.int64()), "__index_level_0__": list(tasks)})
    text = {
        "name": None,
        "field_name": "__index_level_0__",
        "pandas_type": "unicode",
        "numpy_type": "object",
        "metadata": None,
    }
    number = {
        "name": "task_index",
        "field_name": "task_index",
        "pandas_type": "int64",
        "numpy_type": "int64",
        "metadata": None,
    }
    head = {
        "name": None,
        "field_name": None,
        "pandas_type": "unicode",
        "numpy_type": "object",
        "metadata": {"encoding": "UTF-8"},
    }
    about = {
        "index_columns": ["__index_level_0__"], "column_indexes": [head], "columns": [number, text],
        "creator": {"library": "pyarrow", "version": arrow.__version__}, "pandas_version": "2.2.0",
    }  # fmt: skip
    import_parquet().write_table(
        table.replace_schema_metadata({"pandas": json.dumps(about)}), path / "meta" / "tasks.parquet"
    )


def write_episodes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """meta/episodes: one row an episode, statistics as columns stats/<feature>/<name>."""
    import pyarrow as arrow

    file = path / _EPISODES_PATH
    file.parent.mkdir(parents=True, exist_ok=True)
    import_parquet().write_table(arrow.Table.from_pylist([dict(row) for row in rows]), file)
