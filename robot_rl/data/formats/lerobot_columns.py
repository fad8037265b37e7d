"""Rows of a LeRobot dataset from its parquet files: columns and row groups of one episode, never a whole file of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats.lerobot_layout import REPAIR, Entry, Feature, Layout, import_parquet
from robot_rl.errors import DataError

_INDEX = ("episode_index", "frame_index", "index", "timestamp", "task_index")
_FLAGS = ("next.done", "next.truncated")
_BATCH = 64  # rows of embedded images in memory at once


@dataclass(frozen=True)
class Span:
    """Where one episode lies in its file, and what its small columns say.

    Attributes:
        begin: first row in the file.
        tasks: task_index of its rows, each once, in order.
        done, truncated: the last flag of the episode; None without such a column.
        worst_s: largest distance of a timestamp from frame_index / fps.
    """

    begin: int
    tasks: tuple[int, ...]
    done: bool | None
    truncated: bool | None
    worst_s: float


def scan(layout: Layout, tolerance_s: float) -> list[Span]:
    """Check the indices and times of every row of the dataset.

    Raises:
        DataError: rows are missing, too many or out of order, a time is off the grid; names episode and frame.
    """
    spans: list[Span] = []
    first = 0
    for file, entries in _by_file(layout.entries):
        columns = _small_columns(file)
        begin = 0
        for entry in entries:
            part = {key: column[begin : begin + entry.steps] for key, column in columns.items()}
            _check(part, entry, first, layout.fps, tolerance_s)
            tasks = tuple(dict.fromkeys(part["task_index"].tolist()))
            if strange := [task for task in tasks if task not in layout.tasks]:
                raise DataError(
                    f"{file}, episode {entry.number}, task_index", expected="a task of meta/tasks", got=f"{strange[0]}",
                    hint=REPAIR,
                )  # fmt: skip
            done, truncated = (bool(part[key][-1]) if key in part else None for key in _FLAGS)
            worst = float(_off_grid(part, layout.fps).max())
            spans.append(Span(begin, tasks, done, truncated, worst))
            begin, first = begin + entry.steps, first + entry.steps
        if begin != len(columns["index"]):
            raise DataError(
                f"{file}",
                expected=f"{begin} rows, as the episodes in it say",
                got=f"{len(columns['index'])}",
                hint=REPAIR,
            )
    return spans


def _by_file(entries: Sequence[Entry]) -> Iterator[tuple[Path, list[Entry]]]:
    """Episodes of each file; a file that comes twice has rows out of order, which the scan then finds."""
    group: list[Entry] = []
    for entry in entries:
        if group and entry.data != group[0].data:
            yield group[0].data, group
            group = []
        group.append(entry)
    if group:
        yield group[0].data, group


def _small_columns(file: Path) -> dict[str, np.ndarray]:
    try:
        opened = import_parquet().ParquetFile(file)
        names = opened.schema_arrow.names
        if missing := [name for name in _INDEX if name not in names]:
            raise DataError(f"{file}", expected=f"columns {', '.join(missing)}", got=f"{names}", hint=REPAIR)
        table = opened.read(columns=[*_INDEX, *(name for name in _FLAGS if name in names)])
    except (OSError, ValueError) as error:
        raise DataError(f"{file}", expected="a whole parquet file", got=str(error), hint=REPAIR) from error
    return {
        name: _numbers(table[name].combine_chunks(), (), where=f"{file}, column {name}") for name in table.column_names
    }


def _check(part: Mapping[str, np.ndarray], entry: Entry, first: int, fps: float, tolerance_s: float) -> None:
    where, steps = f"{entry.data}, episode {entry.number}", np.arange(entry.steps)
    if len(part["index"]) != entry.steps:
        raise DataError(where, expected=f"{entry.steps} rows", got=f"{len(part['index'])}", hint=REPAIR)
    for key, expected in (
        ("episode_index", steps * 0 + entry.number),
        ("frame_index", steps),
        ("index", first + steps),
    ):
        wrong = np.flatnonzero(part[key] != expected)
        if wrong.size:
            raise DataError(
                f"{where}, frame {wrong[0]}, {key}", expected=f"{expected[wrong[0]]}", got=f"{part[key][wrong[0]]}",
                hint=REPAIR,
            )  # fmt: skip
    off = _off_grid(part, fps)
    wrong = np.flatnonzero(~(off <= tolerance_s + np.spacing(np.float32(entry.steps / fps))))
    if wrong.size:
        frame = int(wrong[0])
        raise DataError(
            f"{where}, frame {frame}, timestamp", expected=f"{frame / fps:.6g} s +- {tolerance_s:g} s",
            got=f"{float(part['timestamp'][frame]):.6g} s ({wrong.size} frames are off, the worst by {np.nanmax(off):.3g} s)",
            hint="If the recording is known to be regular, give --option tolerance_s=SECONDS.",
        )  # fmt: skip


def _off_grid(part: Mapping[str, np.ndarray], fps: float) -> np.ndarray:
    off: np.ndarray = np.abs(part["timestamp"].astype(np.float64) - part["frame_index"] / fps)
    return off


def read_column(file: Path, feature: Feature, begin: int, stop: int, *, where: str) -> np.ndarray:
    """Rows begin..stop - 1 of a numeric column: (stop - begin, *shape).

    Raises:
        DataError: the file is damaged, or the rows are not of the shape that info.json says.
    """
    parts = [
        _numbers(batch, feature.shape, where=where)
        for batch in _batches(file, feature.name, begin, stop, size=1 << 14, where=where)
    ]
    rows: np.ndarray = np.concatenate(parts).astype(np.dtype(feature.kind), copy=False)
    return rows


def read_pictures(file: Path, name: str, begin: int, stop: int, *, where: str) -> Iterator[tuple[int, bytes]]:
    """(row from 0, packed bytes) of an embedded image column struct{bytes, path}. Raises DataError."""
    row = 0
    for batch in _batches(file, name, begin, stop, size=_BATCH, where=where):
        for cell in batch.to_pylist():
            packed = cell.get("bytes") if isinstance(cell, dict) else None
            if packed is None:
                raise DataError(
                    f"{where}, frame {row}", expected="an image inside the parquet file",
                    got="none" if cell is None else f"a path, {cell.get('path') if isinstance(cell, dict) else cell!r}",
                    hint="Embed the images with LeRobot first.",
                )  # fmt: skip
            yield row, packed
            row += 1


def _batches(file: Path, name: str, begin: int, stop: int, *, size: int, where: str) -> Iterator[Any]:
    """Arrow arrays that together are rows begin..stop - 1 of a column."""
    try:
        opened = import_parquet().ParquetFile(file)
        if name not in opened.schema_arrow.names:
            raise DataError(where, expected=f"a column {name}", got=f"{opened.schema_arrow.names}", hint=REPAIR)
        counts = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
        ends = np.cumsum(counts)
        groups = [n for n, end in enumerate(ends) if end > begin and end - counts[n] < stop]
        row = int(ends[groups[0]]) - counts[groups[0]]
        for batch in opened.iter_batches(batch_size=size, row_groups=groups, columns=[name]):
            low, high = max(begin - row, 0), min(stop - row, len(batch))
            if low < high:
                yield batch.column(0).slice(low, high - low)
            row += len(batch)
            if row >= stop:
                return
    except (OSError, ValueError) as error:
        raise DataError(where, expected="a whole parquet file", got=str(error), hint=REPAIR) from error


def _numbers(array: Any, shape: tuple[int, ...], *, where: str) -> np.ndarray:
    """An arrow array of numbers or of (nested) lists of them as (rows, *shape)."""
    rows, depth, size = len(array), 0, 1
    while hasattr(array.type, "value_type") and not array.null_count:
        size = shape[depth] if depth < len(shape) else -1
        lengths = getattr(array.type, "list_size", None)
        if lengths is None:
            found = np.unique(np.asarray(array.value_lengths()))
            lengths = size if not found.size else int(found[0]) if found.size == 1 else -1
        if lengths != size:
            raise DataError(where, expected=f"lists of {size}", got=f"lists of {lengths}", hint=REPAIR)
        array, depth = array.flatten(), depth + 1
    if array.null_count:
        raise DataError(where, expected="a number in every row", got="null", hint=REPAIR)
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype == object or values.size != rows * math.prod(shape):
        raise DataError(where, expected=f"numbers of shape {shape}", got=f"{array.type}", hint=REPAIR)
    shaped: np.ndarray = values.reshape(rows, *shape)
    return shaped
