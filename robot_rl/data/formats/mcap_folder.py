"""Which files are the bags at a path, and which topics they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from robot_rl.data.formats.mcap_file import McapFile
from robot_rl.errors import DataError


def _converted(folder: Path) -> str:
    return (
        f"Write it as MCAP: `pip install rosbags`, then `rosbags-convert --src {folder} --dst NEW --dst-storage mcap`; or put "
        "`output_bags: [{uri: NEW, storage_id: mcap, all: true}]` into convert.yaml and run `ros2 bag convert -i "
        f"{folder} -o convert.yaml`."
    )


def bags_at(path: Path) -> list[tuple[str, list[Path]]]:
    """Name and files of every bag: a file, a rosbag2 folder, a folder of files, or a folder of rosbag2 folders.

    Raises:
        DataError: none there, a part is missing, or a bag of a kind that is not read.
    """
    if path.is_file():
        if path.suffix == ".db3":
            raise _sqlite(path.parent)
        return [(path.stem, [path])]
    if (path / "metadata.yaml").is_file():
        return [(path.name, _parts(path))]
    files = sorted(path.glob("*.mcap"))
    if files:
        return [(file.stem, [file]) for file in files]
    if list(path.glob("*.db3")):
        raise _sqlite(path)
    folders = sorted(place.parent for place in path.glob("*/metadata.yaml"))
    if not folders:
        raise DataError(
            f"{path}", expected="a .mcap file, a rosbag2 folder with metadata.yaml, or a folder of such",
            got="none of them" if path.exists() else "nothing there", hint="Give the folder that `ros2 bag record` made.",
        )  # fmt: skip
    return [(folder.name, _parts(folder)) for folder in folders]


def _parts(folder: Path) -> list[Path]:
    """The files that a rosbag2 folder names, in order."""
    import yaml

    where = f"{folder / 'metadata.yaml'}"
    try:
        content = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))
        said = content["rosbag2_bagfile_information"]
        names = [str(name) for name in said["relative_file_paths"]]
        storage, packing = str(said["storage_identifier"]), str(said.get("compression_mode") or "")
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            where, expected="rosbag2_bagfile_information with storage_identifier and relative_file_paths",
            got=f"{type(error).__name__}: {error}",
            hint="A recorder that was killed writes none: `ros2 bag reindex FOLDER` makes it, or give the .mcap file.",
        ) from error  # fmt: skip
    if storage != "mcap":
        raise (
            _sqlite(folder)
            if storage == "sqlite3"
            else DataError(where, expected="storage mcap", got=storage, hint=_converted(folder))
        )
    if packing.lower() not in ("", "none"):
        raise DataError(
            where, expected="files without a packing of rosbag2's own (MCAP packs by itself)", got=f"mode {packing}",
            hint=_converted(folder),
        )  # fmt: skip
    files = [folder / Path(name).name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise DataError(
            where, expected="every file that it names", got=f"no {', '.join(missing) or 'names'}",
            hint="Copy the whole folder, or correct metadata.yaml with `ros2 bag reindex`.",
        )  # fmt: skip
    return files


def _sqlite(folder: Path) -> DataError:
    return DataError(
        f"{folder}", expected="a bag stored as MCAP", got="sqlite3 (.db3), which is not read",
        hint=_converted(folder),
    )  # fmt: skip


def topic_lines(paths: Sequence[Path]) -> Iterator[str]:
    """Topics of the first bag with type and count, for a person who must say which ones to read."""
    counts: dict[tuple[str, str], int] = {}
    for path in paths[:1]:
        file = McapFile(path)
        for message in file.messages():
            key = (file.topics[message.channel], file.types[message.channel])
            counts[key] = counts.get(key, 0) + 1
        file.close()
    for (topic, kind), count in sorted(counts.items()):
        yield f"{topic}: {kind}, {count} messages"
