"""Camera images as H.264 video, one file per episode and camera, written and read with PyAV.

A video holds T + 1 frames: the T observations of an episode and then its final observation, so that what the last
action led to went through the same codec as everything before it. Every second frame is a keyframe and none refers to
a later one (GOP 2, no B frames): any frame costs two decodes at most. Frame t stands at t / rate exactly; the measured
times are in the store.

x264's macroblock tree is off: with it the same images gave different bytes now and then, and a GOP of 2 has no use for it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64, UInt8
from robot_rl.errors import DataError

GOP_FRAMES = 2
_X264 = {"g": str(GOP_FRAMES), "bf": "0", "preset": "fast", "x264-params": "mbtree=0:rc-lookahead=0:scenecut=0"}
# A shifted copy of a moving scene fits much worse than the right one; noise alone stays near 1.
_SHIFT_RATIO = 0.8


@dataclass(frozen=True)
class VideoFormat:
    """How images are encoded, and what a decoded image must be worth before it is stored.

    Attributes:
        encoder: of ffmpeg.
        pixel_format: that the encoder gets.
        quality: encoder options on top of those that all formats share.
        min_psnr_db: lowest peak signal-to-noise ratio of any frame; None: bit-equal.
    """

    encoder: str
    pixel_format: str
    quality: Mapping[str, str] = field(default_factory=dict)
    min_psnr_db: float | None = None

    @property
    def options(self) -> dict[str, str]:
        """Of the encoder, all of them."""
        return {**_X264, **self.quality}

    def to_json(self, rate: Fraction) -> dict[str, Any]:
        """What the attributes of a store say of its videos."""
        import_av()
        import av

        return {
            "codec": "h264",
            "encoder": self.encoder,
            "pixel_format": self.pixel_format,
            "options": self.options,
            "gop_frames": GOP_FRAMES,
            "min_psnr_db": self.min_psnr_db,
            "lossless": self.min_psnr_db is None,
            "rate": f"{rate.numerator}/{rate.denominator}",
            "frames": "observations 0..T-1, then the final observation",
            "software": {"av": av.__version__, "libavcodec": ".".join(map(str, av.library_versions["libavcodec"]))},
        }


# What any frame of a lossy video must be worth, in stores and in exports.
MIN_PSNR_DB = 30.0
# Choices of EpisodeStore.create(images=...) besides "arrays" (blosc/zstd). libx264rgb skips the conversion to YUV, which
# alone would change the last bit of most pixels.
VIDEO_FORMATS = {
    "video": VideoFormat("libx264", "yuv420p", {"crf": "18"}, min_psnr_db=MIN_PSNR_DB),
    "video_lossless": VideoFormat("libx264rgb", "rgb24", {"qp": "0"}),
}


def frame_rate(control_hz: float) -> Fraction:
    """Frames per second as the fraction that a video file can hold."""
    return Fraction(control_hz).limit_denominator(1001)


def encode_video(frames: UInt8[Array, "T H W 3"], rate: Fraction, video_format: VideoFormat, *, where: str) -> bytes:
    """A whole mp4 file, already decoded again and compared with `frames`.

    Args:
        frames: RGB.
        rate: frames per second.
        video_format: one of VIDEO_FORMATS.
        where: episode and camera, for errors.

    Raises:
        DataError: PyAV is missing, its encoder refuses, or a decoded frame is not good enough.
    """
    import_av()
    import av

    even = frames
    if video_format.pixel_format == "yuv420p" and (frames.shape[1] % 2 or frames.shape[2] % 2):
        even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    packed = io.BytesIO()
    try:
        with av.open(packed, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = add_stream(container, video_format, rate, even.shape[1:3])
            for number, image in enumerate(even):
                container.mux(stream.encode(as_frame(image, number, rate)))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise DataError(
            where,
            expected=f"images that {video_format.encoder} can encode",
            got=f"{frames.shape[1]} x {frames.shape[2]} pixels: {error}",
            hint='Nothing was written. Make the store with images="arrays".',
        ) from error
    content = packed.getvalue()
    _verify(content, frames, rate, video_format, where=where)
    return content


def add_stream(container: Any, video_format: VideoFormat, rate: Fraction, size: tuple[int, ...]) -> Any:
    """A video stream of (rows, columns) in an open PyAV container."""
    stream: Any = container.add_stream(video_format.encoder, rate=rate, options=video_format.options)
    stream.height, stream.width = size
    stream.pix_fmt = video_format.pixel_format
    stream.codec_context.time_base = 1 / rate
    # More threads would make the result depend on the machine.
    stream.codec_context.thread_count = 1
    return stream


def as_frame(image: UInt8[Array, "H W 3"], number: int, rate: Fraction) -> Any:
    """PyAV's frame of an RGB image, at number / rate seconds."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame.pts, frame.time_base = number, 1 / rate
    return frame


def decode_video(
    content: bytes, rate: Fraction, *, into: UInt8[Array, "T H W 3"], where: str, first: int = 0
) -> UInt8[Array, "T H W 3"]:
    """Frames first..first + len(into) - 1 of a video, RGB; returns `into`.

    Args:
        content: of the file.
        rate: frames per second.
        into: array to fill.
        where: episode and camera, for errors.
        first: number of the first frame wanted.

    Raises:
        DataError: PyAV is missing, the file is damaged, or it holds fewer frames, others, or at other times.
    """
    last = first + len(into) - 1
    for number, image in _decoded(content, rate, into.shape[1:3], first=first, where=where):
        if number > last:
            break
        into[number - first] = image
        if number == last:
            return into
    raise DataError(
        where,
        expected=f"frames {first}..{last}",
        got="a video that ends earlier",
        hint="The store is damaged: restore it from a copy, or make it anew.",
    )


def _decoded(
    content: bytes, rate: Fraction, size: tuple[int, ...], *, first: int, where: str
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, image) from frame `first` to the end; the numbers come from the times in the file and have no gap."""
    import_av()
    import av

    try:
        with av.open(io.BytesIO(content), "r", format="mp4") as container:
            stream: Any = container.streams.video[0]
            stream.codec_context.thread_count = 1
            if first:
                container.seek(int(first / rate / stream.time_base), stream=stream)
            expected = first
            frame: Any
            for frame in container.decode(stream):
                position = -1 if frame.pts is None else frame.pts * frame.time_base * rate
                if position < first:
                    continue
                image = frame.to_ndarray(format="rgb24")
                if (
                    position != expected
                    or image.shape[0] - size[0] not in (0, 1)
                    or image.shape[1] - size[1] not in (0, 1)
                ):
                    raise DataError(
                        where,
                        expected=f"frame {expected} of {size[0]} x {size[1]} pixels",
                        got=f"frame {float(position):g} of {image.shape[0]} x {image.shape[1]}",
                        hint="Another program wrote this file: restore it from a copy.",
                    )
                yield expected, image[: size[0], : size[1]]
                expected += 1
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DataError(
            where,
            expected="an H.264 video",
            got=f"{type(error).__name__}: {error}",
            hint="The store is damaged: restore it from a copy, or make it anew.",
        ) from error


def _verify(content: bytes, frames: np.ndarray, rate: Fraction, video_format: VideoFormat, *, where: str) -> None:
    """Decode and compare: every frame, in its place, good enough."""
    floor, count = video_format.min_psnr_db, 0
    errors = np.zeros(3)
    for number, image in _decoded(content, rate, frames.shape[1:3], first=0, where=where):
        count += 1
        if number >= len(frames):
            continue
        worth = psnr_db(image, frames[number])
        if worth < (np.inf if floor is None else floor):
            raise DataError(
                f"{where}, frame {number}",
                expected="the very image"
                if floor is None
                else f"at least {floor:g} dB PSNR after {video_format.encoder}",
                got=f"{worth:.1f} dB",
                hint='Nothing was written. Make the store with images="video_lossless" or "arrays".',
            )
        errors += neighbour_errors(image, frames, number)
    is_shifted = is_out_of_place(errors)
    if count != len(frames) or is_shifted:
        raise DataError(
            where,
            expected=f"{len(frames)} frames, each in its place",
            got="frames that fit their neighbours better" if is_shifted else f"{count} frames",
            hint="This is a bug of the encoder in this version of PyAV. Nothing was written.",
        )


def neighbour_errors(image: UInt8[Array, "H W 3"], frames: UInt8[Array, "T H W 3"], number: int) -> Float64[Array, "3"]:
    """Squared error of a decoded image against the frame before its place, the one there and the next; zeros at an end."""
    if not 0 < number < len(frames) - 1:
        return np.zeros(3)
    return np.array([_squared_error(image, frames[number + shift]) for shift in (-1, 0, 1)])


def is_out_of_place(errors: Float64[Array, "3"]) -> bool:
    """Whether summed `neighbour_errors` say that the frames of a video are one off."""
    return bool(min(errors[0], errors[2]) < _SHIFT_RATIO * errors[1])


def psnr_db(left: UInt8[Array, "H W 3"], right: UInt8[Array, "H W 3"]) -> float:
    """Peak signal-to-noise ratio of two images, infinite when they are equal."""
    error = _squared_error(left, right)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _squared_error(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.square(left.astype(np.int32) - right).mean())


def import_av() -> None:
    """Check that PyAV is there.

    Raises:
        DataError: saying what to install.
    """
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise DataError(
            "images as video",
            expected="PyAV, which encodes and decodes them",
            got="no module named av",
            hint="pip install 'robot-rl[data]'",
        ) from error
