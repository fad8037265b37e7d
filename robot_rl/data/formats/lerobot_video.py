"""Camera videos of LeRobot datasets with PyAV: many episodes in one mp4, and a frame found by its time alone.

Frame k of an episode is the picture whose time is from_timestamp + k / fps. A file with a gap, a doubled frame or fewer
frames than the episodes need is refused, never read one frame off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, UInt8
from robot_rl.data.formats.lerobot_layout import REPAIR, Layout
from robot_rl.data.video import VIDEO_FORMATS, add_stream, as_frame, frame_rate, import_av
from robot_rl.errors import DataError

# Any frame costs two decodes at most, as LeRobot writes its own.
FORMAT = VIDEO_FORMATS["video"]


def check_videos(layout: Layout) -> list[str]:
    """Compare the frame counts in the heads of the videos with what the episodes need.

    Returns:
        Notes for files with more frames than that.

    Raises:
        DataError: a file is no video, or too short; names the first episode behind its end.
    """
    frames: dict[Path, int] = {}
    needed: dict[Path, int] = {}
    for entry in layout.entries:
        for camera, clip in entry.videos.items():
            if clip.path not in frames:
                frames[clip.path] = count_frames(clip.path, where=f"{clip.path}, {camera}")
            stop = round(clip.start_s * layout.fps) + entry.steps
            needed[clip.path] = max(needed.get(clip.path, 0), stop)
            if 0 < frames[clip.path] < stop:
                raise DataError(
                    f"{clip.path}, episode {entry.number}, {camera}, frame {max(entry.steps - stop + frames[clip.path], 0)}",
                    expected=f"{stop} frames up to the end of this episode", got=f"{frames[clip.path]}", hint=REPAIR,
                )  # fmt: skip
    return [
        f"{file} has {frames[file]} frames, {frames[file] - stop} more than its episodes use."
        for file, stop in needed.items()
        if frames[file] > stop
    ]


def count_frames(file: Path, *, where: str) -> int:
    """Frames of a video by its head; 0 where it does not say. Raises DataError for a file that is no video."""
    import_av()
    import av

    try:
        with av.open(str(file), "r") as container:
            return int(container.streams.video[0].frames)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DataError(where, expected="a video", got=f"{type(error).__name__}: {error}", hint=REPAIR) from error


def read_clip(
    file: Path, into: UInt8[Array, "T H W 3"], *, start_s: float, fps: float, tolerance_s: float, where: str
) -> UInt8[Array, "T H W 3"]:
    """Fill `into` with the frames of one episode, RGB, and return it.

    Args:
        file: the mp4.
        into: T frames.
        start_s: time of the first one in the file.
        fps: frames a second.
        tolerance_s: largest distance of a frame from its place.
        where: episode and camera, for errors.

    Raises:
        DataError: not a video, or a frame is missing, off the grid or of another size.
    """
    expected = 0
    for seconds, tick, image in _decoded(file, start_s, where=where):
        place = (seconds - start_s) * fps
        if round(place) < expected and expected == 0:
            continue  # a seek lands on the keyframe before
        allowed = min(max(tolerance_s, 2 * tick), 0.25 / fps)
        if round(place) != expected or abs(place - expected) / fps > allowed:
            raise DataError(
                f"{where}, frame {expected}", expected=f"a picture at {start_s + expected / fps:.6g} s +- {allowed:.2g} s",
                got=f"one at {seconds:.6g} s", hint=REPAIR,
            )  # fmt: skip
        if image.shape != into.shape[1:]:
            raise DataError(
                f"{where}, frame {expected}", expected=f"shape {into.shape[1:]}", got=f"{image.shape}", hint=REPAIR
            )
        into[expected] = image
        expected += 1
        if expected == len(into):
            return into
    raise DataError(
        f"{where}, frame {expected}", expected=f"{len(into)} frames", got="the end of the video", hint=REPAIR
    )


def _decoded(file: Path, start_s: float, *, where: str) -> Iterator[tuple[float, float, np.ndarray]]:
    """(seconds, one tick of the file, RGB image) from the last keyframe at or before `start_s`."""
    import_av()
    import av

    try:
        with av.open(str(file), "r") as container:
            stream: Any = container.streams.video[0]
            stream.codec_context.thread_count = 1
            tick = float(stream.time_base)
            if start_s > 0:
                container.seek(max(int(start_s / tick) - 1, 0), stream=stream)
            frame: Any
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise DataError(where, expected="a time for every frame", got="none", hint=REPAIR)
                if frame.is_corrupt:
                    raise DataError(
                        f"{where}, {frame.pts * tick:g} s", expected="a whole frame", got="a damaged one", hint=REPAIR
                    )
                yield float(frame.pts * frame.time_base), tick, frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, ValueError, IndexError, OSError) as error:
        raise DataError(
            where, expected="a video that PyAV can decode", got=f"{type(error).__name__}: {error}", hint=REPAIR
        ) from error


class VideoWriter:
    """One mp4 with the frames of many episodes, one after the other; `close` finishes it.

    Attributes:
        frames: written so far.
        size_bytes: of the packets so far.
    """

    def __init__(self, path: Path, *, fps: float, shape: tuple[int, ...], where: str) -> None:
        """`shape` is (H, W, 3). Raises DataError where the encoder is missing or refuses the size."""
        import_av()
        import av

        self.path, self.frames, self.size_bytes, self._where = path, 0, 0, where
        self._rate: Fraction = frame_rate(fps)
        if shape[0] % 2 or shape[1] % 2:
            raise DataError(
                where, expected="an even number of rows and columns (yuv420p)", got=f"{shape[0]} x {shape[1]}",
                hint='Export with images="png".',
            )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"})
        self._stream = add_stream(self._container, FORMAT, self._rate, shape[:2])

    def add(self, images: UInt8[Array, "T H W 3"]) -> tuple[float, float]:
        """Append the frames of one episode; returns the seconds where they begin and end."""
        begin = self.frames
        for image in images:
            self._mux(as_frame(image, self.frames, self._rate))
            self.frames += 1
        return float(begin / self._rate), float(self.frames / self._rate)

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        self._mux(None)
        self._container.close()

    def abort(self) -> None:
        """Close the file as it is."""
        self._container.close()

    def _mux(self, frame: Any) -> None:
        import av

        try:
            for packet in self._stream.encode(frame):
                self.size_bytes += packet.size
                self._container.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            raise DataError(
                self._where,
                expected=f"images that {FORMAT.encoder} can encode",
                got=str(error),
                hint='Export with images="png".',
            ) from error


def video_info(shape: tuple[int, ...], fps: int | float) -> Mapping[str, Any]:
    """What info.json says of a video feature, encoder options included."""
    options = FORMAT.options
    return {
        "video.height": shape[0], "video.width": shape[1], "video.channels": 3, "video.codec": "h264",
        "video.pix_fmt": FORMAT.pixel_format, "video.fps": fps, "video.is_depth_map": False, "has_audio": False,
        "video.encoder": FORMAT.encoder, "video.g": int(options["g"]), "video.crf": int(options["crf"]),
        "video.preset": options["preset"], "video.encoder_options": options,
    }  # fmt: skip
