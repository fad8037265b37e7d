"""Episodes as rows of flat arrays: the layout of a store, the checks before anything is written, and checksums.

Three kinds of arrays: `data/<name>` has one row per step, `meta/<name>` one per episode, and the JSON text of all
episodes is one run of bytes, which readers of diffusion_policy stores pass over as just another uint8 array.
"""

from __future__ import annotations

import json
import re
import uuid
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Int64, UInt8
from robot_rl.data.zarr_layout import IMAGE_CODEC, LOW_DIM_CODEC, ZarrArray
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode, Source

ENDS = "meta/episode_ends"
SUCCESS = "meta/episode_success"
SEED = "meta/episode_seed"
SOURCE = "meta/episode_source"
UUID = "meta/episode_uuid"
CRC = "meta/episode_crc32"
TEXT = "meta/episode_metadata"
TEXT_ENDS = "meta/episode_metadata_ends"
# Read at once when a store is opened; the last column of CRC covers all of them.
INDEX = (ENDS, SUCCESS, SEED, SOURCE, UUID, TEXT_ENDS, CRC)
_STEP_FIELDS = {
    "reward": "float32",
    "success": "bool",
    "source": "uint8",
    "timestamp": "float64",
    "done": "bool",
    "truncated": "bool",
}


def array_names(spec: EnvSpec) -> dict[str, str]:
    """What a user asks for ("image/front", "action", "final/proprio", ...) -> array in the store, checksummed order.

    Raises:
        DataError: for an observation key that can't be stored.
    """
    names = {key: f"data/{_legal(key)}" for key in spec.observation}
    names |= {key: f"data/{key}" for key in ("action", *_STEP_FIELDS)}
    return names | {f"final/{key}": f"meta/final_{_legal(key)}" for key in spec.observation}


def array_layout(spec: EnvSpec, store: Path, *, videos: Collection[str] = ()) -> dict[str, ZarrArray]:
    """Array name -> array of a store, for all its arrays; the observations `videos` have none (video_files.py).

    Raises:
        DataError: for an observation key or shape that can't be stored.
    """
    columns = len(array_names(spec)) + 2
    shapes = {"data/action": (spec.action.dtype, spec.action.shape)}
    shapes |= {f"data/{name}": (dtype, ()) for name, dtype in _STEP_FIELDS.items()}
    for key, array in spec.observation.items():
        if array.size == 0:
            raise DataError(
                f"observation key {key!r}",
                expected="at least one element",
                got=f"shape {array.shape}",
                hint="Leave this key out of the spec.",
            )
        if key not in videos:
            shapes[f"data/{_legal(key)}"] = shapes[f"meta/final_{_legal(key)}"] = (array.dtype, array.shape)
    shapes |= {ENDS: ("int64", ()), SUCCESS: ("bool", ()), SEED: ("int64", ()), SOURCE: ("uint8", ())}
    shapes |= {UUID: ("uint8", (16,)), CRC: ("uint32", (columns,)), TEXT: ("uint8", ()), TEXT_ENDS: ("int64", ())}
    layout = {}
    for name, (dtype, shape) in shapes.items():
        is_image = dtype == "uint8" and len(shape) >= 2
        # Appending rewrites the last chunk, so chunks of tiny rows are kept short.
        rows = 16384 if name.startswith("data/") or name == TEXT else 1024
        codec = None if name == ENDS else IMAGE_CODEC if is_image else LOW_DIM_CODEC
        layout[name] = ZarrArray(store / name, dtype, tuple(shape), rows, codec)
    return layout


def check_episode(episode: Episode, spec: EnvSpec, number: int) -> None:
    """Check one episode before it is written.

    Args:
        episode: to check.
        spec: of the store.
        number: index the episode would get.

    Raises:
        DataError: naming episode, key and step.
    """
    where = f"episode {number}"
    for part, given in (("observation", episode.observation), ("final_observation", episode.final_observation)):
        if set(given) != set(spec.observation):
            raise DataError(
                f"{where}, {part}",
                expected=f"the keys {sorted(spec.observation)}",
                got=f"{sorted(given)}",
                hint="Record every observation of the spec, under its name, and nothing else.",
            )
    steps = int(episode.action.shape[0]) if np.ndim(episode.action) else 0
    if steps == 0:
        raise DataError(where, expected="at least one step", got="none", hint="An empty episode can't be stored.")
    expected = {"action": (spec.action.dtype, (steps, *spec.action.shape))}
    expected |= {key: (dtype, (steps,)) for key, dtype in _STEP_FIELDS.items()}
    expected |= {key: (array.dtype, (steps, *array.shape)) for key, array in spec.observation.items()}
    expected |= {f"final/{key}": (array.dtype, array.shape) for key, array in spec.observation.items()}
    for key, array in _fields(episode).items():
        _check_array(array, *expected[key], where=f"{where}, key {key!r}")
    if int(episode.source.max()) > max(Source):
        step = int(np.argmax(episode.source > max(Source)))
        raise DataError(
            f"{where}, key 'source', step {step}",
            expected=f"{', '.join(f'{s.value} ({s.name})' for s in Source)}",
            got=f"{episode.source[step]}",
            hint="Say who chose this action.",
        )
    backwards = np.flatnonzero(np.diff(episode.time) < 0)
    if backwards.size:
        step = int(backwards[0]) + 1
        raise DataError(
            f"{where}, key 'timestamp', step {step}",
            expected=f"a time not before {episode.time[step - 1]} s",
            got=f"{episode.time[step]} s",
            hint="Use a monotonic clock.",
        )
    _text(episode, where)


def episode_rows(
    episodes: Sequence[Episode],
    spec: EnvSpec,
    *,
    first_episode: int,
    first_step: int,
    first_byte: int,
    uuids: UInt8[Array, "E 16"] | None = None,
    videos: Sequence[Mapping[str, bytes]] | None = None,
) -> dict[str, np.ndarray]:
    """Rows that append checked episodes to a store which holds so many episodes, steps and bytes of text.

    `uuids` keeps the ids of recordings that come from another store; None draws new ones. `videos` are the files that
    stand for the images of each episode: checksums cover their bytes, and these keys have no rows.

    Raises:
        DataError: when the metadata of an episode is no JSON.
    """
    names = array_names(spec)
    fields = [_fields(episode) for episode in episodes]
    # As bytes in place of an image: what the checksum covers, of the observations and of the final one.
    packed = [
        {side + key: content for key, content in video.items() for side in ("", "final/")} for video in videos or ()
    ]
    texts = [_text(episode, f"episode {first_episode + i}") for i, episode in enumerate(episodes)]
    rows = {}
    for key, name in names.items():
        if packed and key in packed[0]:
            continue
        join = np.stack if key.startswith("final/") else np.concatenate
        rows[name] = join([field[key] for field in fields])
    rows[TEXT] = np.frombuffer(b"".join(texts), np.uint8)
    rows[ENDS] = first_step + np.cumsum([len(episode) for episode in episodes], dtype=np.int64)
    rows[TEXT_ENDS] = first_byte + np.cumsum([len(text) for text in texts], dtype=np.int64)
    rows[SUCCESS] = np.array([episode.success.any() for episode in episodes], bool)
    rows[SEED] = np.array([episode.metadata.get("seed", -1) for episode in episodes], np.int64)
    # The highest code wins: one intervention makes an episode an intervention episode.
    rows[SOURCE] = np.array([episode.source.max() for episode in episodes], np.uint8)
    new = [np.frombuffer(uuid.uuid4().bytes, np.uint8) for _ in episodes] if uuids is None else list(uuids)
    rows[UUID] = np.stack(new)
    rows[CRC] = np.zeros((len(episodes), len(names) + 2), np.uint32)
    for i, (field, text) in enumerate(zip(fields, texts, strict=True)):
        files = packed[i] if packed else {}
        crcs = (zlib.crc32(files[key]) if key in files else crc32(field[key]) for key in names)
        rows[CRC][i, :-1] = [*crcs, zlib.crc32(text)]
    rows[CRC][:, -1] = index_crcs(rows)
    return rows


def episode_from_rows(rows: Mapping[str, Array], text: bytes, spec: EnvSpec) -> Episode:
    """Inverse of `episode_rows` for one episode; `rows` by the keys of `array_names`."""
    return Episode(
        observation={key: rows[key] for key in spec.observation},
        final_observation={key: rows[f"final/{key}"][0] for key in spec.observation},
        action=rows["action"],
        reward=rows["reward"],
        success=rows["success"],
        terminated=bool(rows["done"][-1]),
        truncated=bool(rows["truncated"][-1]),
        source=rows["source"],
        time=rows["timestamp"],
        metadata=json.loads(text),
    )


def crc32(array: Array) -> int:
    """Checksum of the elements of an array in C order."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def index_crcs(index: Mapping[str, np.ndarray]) -> Int64[Array, " E"]:
    """Checksum of each episode's row in the INDEX arrays (but the checksum itself)."""
    episodes = len(index[ENDS])
    parts = [index[name][:, :-1] if name == CRC else index[name] for name in INDEX]
    packed = [np.ascontiguousarray(part).reshape(episodes, -1).view(np.uint8) for part in parts] if episodes else []
    table = np.concatenate(packed, axis=1) if packed else np.zeros((0, 1), np.uint8)
    return np.array([zlib.crc32(row.data) for row in table], np.int64)


def schema_differences(stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per leaf that differs between two EnvSpec.to_json results.

    A `point_cloud` that one of them does not know (older ones) is no difference, nor are the cameras of its points.
    """
    left, right = (dict(_leaves(plain, "")) for plain in (stored, new))
    for part in ("point_cloud.", "point_cloud.cameras"):
        if any(key.startswith(part) for key in left) != any(key.startswith(part) for key in right):
            left, right = ({k: v for k, v in side.items() if not k.startswith(part)} for side in (left, right))
    missing = "nothing"
    return [
        f"{key}: stored {left.get(key, missing)}, new {right.get(key, missing)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, missing) != right.get(key, missing)
    ]


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.loads(json.dumps(tree))


def _fields(episode: Episode) -> dict[str, np.ndarray]:
    """Every array of an episode by the keys of `array_names`."""
    steps = len(episode)
    ending = np.arange(steps) == steps - 1
    fields = {
        "action": episode.action,
        "reward": episode.reward,
        "success": episode.success,
        "source": episode.source,
        "timestamp": episode.time,
        "done": ending & episode.terminated,
        "truncated": ending & episode.truncated,
    }
    fields |= episode.observation
    return fields | {f"final/{key}": value for key, value in episode.final_observation.items()}


def _check_array(array: Any, dtype: str, shape: tuple[int, ...], *, where: str) -> None:
    is_array = isinstance(array, np.ndarray | np.generic)
    if not is_array or array.dtype != np.dtype(dtype) or array.shape != tuple(shape):
        got = f"{array.dtype} of shape {tuple(array.shape)}" if is_array else type(array).__name__
        raise DataError(
            where,
            expected=f"a numpy array, {dtype} of shape {tuple(shape)}",
            got=got,
            hint="Nothing was written. Convert the array, or make a store with the right spec.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0].tolist()
        place = f", element {first}" if "'final/" in where else f", step {first[0]}, element {first[1:]}"
        raise DataError(
            where + place,
            expected="finite numbers",
            got=f"{array[tuple(first)]}",
            hint="Nothing was written. Drop or repair this episode.",
        )


def _text(episode: Episode, where: str) -> bytes:
    seed = episode.metadata.get("seed", -1)
    try:
        if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise TypeError(f"seed {seed!r} is no 64 bit int")
        return json.dumps(dict(episode.metadata), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}, metadata",
            expected="JSON types only, and an int as 'seed'",
            got=str(error),
            hint="Convert numpy numbers with int() or float(); NaN is no JSON.",
        ) from error


def _legal(key: str) -> str:
    """Array name of an observation key: "/" would make a group inside the group, "__" stands for it."""
    name = key.replace("/", "__")
    reserved = {"action", *_STEP_FIELDS}
    is_plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]*", key) and name.replace("__", "/") == key
    if not is_plain or name in reserved or key.startswith("final/"):
        raise DataError(
            f"observation key {key!r}",
            expected="letters, digits, '_', '-', '.' and '/', without '__' and '_/'",
            got="a reserved name" if is_plain else "a key that would not come back from disk",
            hint=f"Rename it. Reserved: final/..., {', '.join(sorted(reserved))}.",
        )
    return name
