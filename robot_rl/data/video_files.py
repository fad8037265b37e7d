"""The videos of a store: `videos/<camera key>/<episode>.mp4`, in place of the arrays of these cameras.

They are on the disk before the journal of their episodes is, and that is before the index: a file beyond the index is
what a writer left that died, and the next one removes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from robot_rl.arrays import Array, UInt8
from robot_rl.data.video import VIDEO_FORMATS, decode_video, encode_video, frame_rate
from robot_rl.errors import DataError, closest
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import Episode

ARRAYS = "arrays"
FOLDER = "videos"
_THREADS = 4
_RESTORE = "The store is damaged: restore it from a copy, or make it anew."


def video_keys(spec: EnvSpec, images: str) -> tuple[str, ...]:
    """Observations that a store keeps as videos: the uint8 RGB cameras, unless `images` is "arrays".

    Raises:
        DataError: for another word than "arrays" and VIDEO_FORMATS.
    """
    if images == ARRAYS:
        return ()
    if images not in VIDEO_FORMATS:
        raise DataError("images", expected="a way to store them", got=repr(images), hint=closest(images, STORAGES))
    return tuple(key for key, array in spec.observation.items() if _is_camera(key, array))


STORAGES = (ARRAYS, *VIDEO_FORMATS)


class VideoFiles:
    """Files of one store.

    Attributes:
        keys: observations that are stored as videos; empty for most stores.
    """

    def __init__(self, store: Path, spec: EnvSpec, images: str) -> None:
        """`images` is the store's own word for how it keeps them.

        Raises:
            DataError: for an unknown word.
        """
        self.keys = video_keys(spec, images)
        self._store, self._spec, self._images = store, spec, images
        self._rate = frame_rate(spec.control_hz)

    def folders(self) -> list[Path]:
        """One for each camera."""
        return [self.path(key, 0).parent for key in self.keys]

    def path(self, key: str, episode: int) -> Path:
        """Where a video is."""
        return self._store / FOLDER / key.replace("/", "__") / f"{episode:06d}.mp4"

    def encode(
        self, episodes: Sequence[Episode], first: int, known: Sequence[Mapping[str, bytes]] | None
    ) -> list[dict[str, bytes]]:
        """Verified videos of each episode by key.

        Args:
            episodes: checked.
            first: number that the first one gets.
            known: videos that the images were decoded from, per episode; they are taken over when that is so.

        Raises:
            DataError: PyAV is missing, or it can't encode the images well enough.
        """

        def one(place: tuple[int, str]) -> bytes:
            index, key = place
            episode, where = episodes[index], self._where(key, first + index)
            frames = np.concatenate([episode.observation[key], episode.final_observation[key][None]])
            content = None if known is None else known[index].get(key)
            if content is not None and np.array_equal(self._all(content, len(frames), key, where), frames):
                return content
            return encode_video(frames, self._rate, VIDEO_FORMATS[self._images], where=where)

        places = [(index, key) for index in range(len(episodes)) for key in self.keys]
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            contents = dict(zip(places, pool.map(one, places), strict=True))
        return [{key: contents[index, key] for key in self.keys} for index in range(len(episodes))]

    def files(self, videos: Sequence[Mapping[str, bytes]], first: int) -> dict[Path, bytes]:
        """Files of the videos of episodes first, first + 1, ..."""
        return {self.path(key, first + i): content for i, video in enumerate(videos) for key, content in video.items()}

    def check(self, episodes: int) -> None:
        """Check that the videos of the first `episodes` exist and are whole files, without decoding them.

        Raises:
            DataError: naming episode and camera.
        """
        for key in self.keys:
            for episode in range(episodes):
                self._check_boxes(key, episode)

    def read(self, key: str, episode: int) -> bytes:
        """Content of a video.

        Raises:
            DataError: naming episode and camera.
        """
        try:
            return self.path(key, episode).read_bytes()
        except OSError as error:
            raise self._damaged(key, episode, error.strerror or str(error)) from error

    def observations(self, content: bytes, key: str, episode: int, into: UInt8[Array, "T H W 3"]) -> None:
        """Decode the observations of an episode.

        Raises:
            DataError: naming episode and camera.
        """
        decode_video(content, self._rate, into=into, where=self._where(key, episode))

    def final(self, content: bytes, key: str, episode: int, steps: int, into: UInt8[Array, "1 H W 3"]) -> None:
        """Decode the final observation of an episode of so many steps.

        Raises:
            DataError: naming episode and camera.
        """
        decode_video(content, self._rate, into=into, where=self._where(key, episode), first=steps)

    def sweep(self, episodes: int) -> None:
        """Remove videos of episodes that were never committed; only for the writer."""
        for folder in self.folders():
            for file in folder.glob("*.mp4"):
                if file.stem.isdigit() and int(file.stem) >= episodes:
                    file.unlink(missing_ok=True)

    def _all(self, content: bytes, frames: int, key: str, where: str) -> np.ndarray:
        into: np.ndarray = np.empty((frames, *self._spec.observation[key].shape), np.uint8)
        decode_video(content, self._rate, into=into, where=where)
        return into

    def _check_boxes(self, key: str, episode: int) -> None:
        """An mp4 is a row of boxes, each with its size in front; their sum is the size of the file."""
        try:
            with open(self.path(key, episode), "rb") as file:
                size, place, kinds = os.fstat(file.fileno()).st_size, 0, set[bytes]()
                while place < size:
                    file.seek(place)
                    header = file.read(16)
                    length, kind = int.from_bytes(header[:4], "big"), header[4:8]
                    if length == 1:
                        length = int.from_bytes(header[8:], "big")
                    if length < 8:
                        break
                    place += length
                    kinds.add(kind)
        except OSError as error:
            raise self._damaged(key, episode, error.strerror or str(error)) from error
        if place != size or not kinds >= {b"ftyp", b"mdat", b"moov"}:
            raise self._damaged(key, episode, f"a file of {size} bytes that is cut off or no video")

    def _damaged(self, key: str, episode: int, got: str) -> DataError:
        where = f"{self._where(key, episode)} ({self.path(key, episode)})"
        return DataError(where, expected="a whole video", got=got, hint=_RESTORE)

    def _where(self, key: str, episode: int) -> str:
        return f"{self._store}, episode {episode}, camera {key.removeprefix('image/')!r}"


def _is_camera(key: str, array: ArraySpec) -> bool:
    return key.startswith("image/") and array.dtype == "uint8" and len(array.shape) == 3 and array.shape[-1] == 3
