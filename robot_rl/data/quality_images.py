"""Images: a camera that stopped, repeats its frames, is black, or shows what another one shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from robot_rl.algorithms.throughput import longest_run
from robot_rl.arrays import Array, Bool, Float64, UInt8
from robot_rl.data.quality import IMAGE, Finding, Limits, Place, Severity, delete_command, trim_command
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode

_SAMPLE = 512
_BLACK = 16
_PLAIN = 2
_CODEC, _CODEC_MEAN = 8, 0.5
# Below this a robot counts as standing still: metres or radians, or a part of its range in any other unit.
_MOVED = 0.01


def images_of(episode: Episode, spec: EnvSpec) -> dict[str, np.ndarray]:
    """Key -> uint8 (T, H, W, C) of every camera."""
    return {
        key: np.asarray(episode.observation[key])
        for key, array in spec.observation.items()
        if array.dtype == "uint8" and len(array.shape) == 3 and key in episode.observation
    }


def repeats(frames: UInt8[Array, "T H W C"]) -> Bool[Array, " T1"]:
    """Whether a frame repeats the one before; T1 = T - 1.

    Equal but for what a video codec adds to a still picture when it refreshes it (H.264: up to 5 of 255 in a few pixels).
    """
    flat = frames.reshape(len(frames), -1)
    sample = flat[:, :: max(1, flat.shape[1] // _SAMPLE)].astype(np.int16)
    equal: np.ndarray = np.abs(np.diff(sample, axis=0)).max(axis=1) <= _CODEC
    for step in np.flatnonzero(equal):
        change = np.abs(flat[step + 1].astype(np.int16) - flat[step])
        equal[step] = change.max() <= _CODEC and change.mean() <= _CODEC_MEAN
    return equal


def image_findings(
    frames: UInt8[Array, "T H W C"], proprio: Float64[Array, "T P"], number: int, *, key: str, control_hz: float,
    limits: Limits,
) -> Iterator[Finding]:  # fmt: skip
    """Frozen, repeated, black and single-coloured frames of one camera in one episode.

    Args:
        frames: of the camera.
        proprio: of the robot, which must move for a still picture to be wrong.
        number: of the episode.
        key: observation key of the camera.
        control_hz: declared rate.
        limits: see Limits.
    """
    yield from _dark(frames, number, key, limits)
    same = repeats(frames)
    steps, first = longest_run(same)
    if steps >= max(limits.frozen_steps, limits.frozen_s * control_hz):
        way = np.abs(proprio[first : first + steps + 1] - proprio[first]).max(initial=0)
        moved = bool(way > _MOVED)
        yield Finding(
            "frozen_camera", Severity.error if moved else Severity.note, Place(number, first + 1, key),
            f"the same frame for {steps + 1} steps ({(steps + 1) / control_hz:.2f} s) while proprio "
            f"{'moves by' if moved else 'stands still within'} {way:.3g}", float(steps + 1),
            f"Cut it there: {trim_command(number, end=len(frames) - first - 1)}" if moved
            else "A real camera has noise: check that it was on.", steps,
        )  # fmt: skip
        return
    moving = np.abs(np.diff(proprio, axis=0)).max(axis=1, initial=0) > 0.1 * _MOVED
    share = float(same[moving].mean()) if moving.any() else 0.0
    if share > limits.repeated and int(moving.sum()) >= limits.frozen_steps:
        step = int(np.flatnonzero(same & moving)[0]) + 1
        yield Finding(
            "repeated_frames", Severity.warning, Place(number, step, key),
            f"{share:.0%} of the frames repeat the one before although the robot moves: the camera is slower than "
            f"{control_hz:g} Hz", share, "Lower the control rate or raise the camera's; record the age of frames.",
            int((same & moving).sum()),
        )  # fmt: skip


def same_cameras(images: Mapping[str, UInt8[Array, "T H W C"]], number: int) -> Iterator[Finding]:
    """Cameras that show the same pictures at the beginning, in the middle and at the end of an episode."""
    keys = list(images)
    for index, left in enumerate(keys):
        for right in keys[index + 1 :]:
            a, b = images[left], images[right]
            steps = (0, len(a) // 2, len(a) - 1)
            if a.shape == b.shape and all(np.array_equal(a[t], b[t]) for t in steps) and int(np.ptp(a[0])) > 0:
                yield Finding(
                    "same_camera", Severity.error, Place(number, 0, right),
                    f"it shows what camera {left.removeprefix(IMAGE)} shows", None,
                    "Two names were given to one device or one video file: correct the mapping and import again.",
                )  # fmt: skip


def _dark(frames: np.ndarray, number: int, key: str, limits: Limits) -> Iterator[Finding]:
    pixels = frames.reshape(len(frames), -1, frames.shape[-1])
    sample = pixels[:, :: max(1, pixels.shape[1] // _SAMPLE)]
    # The sample only says which frames to look at whole.
    doubtful = np.flatnonzero((sample.max(axis=(1, 2)) <= _BLACK) | (np.ptp(sample, axis=1).max(axis=1) <= _PLAIN))
    black = np.array([step for step in doubtful if int(frames[step].max()) <= _BLACK], dtype=int)
    others = np.setdiff1d(doubtful, black)
    plain = np.array([step for step in others if int(np.ptp(pixels[step], axis=0).max()) <= _PLAIN], dtype=int)
    for check, steps, what in (("black_frame", black, "black"), ("plain_frame", plain, "of one colour")):
        if len(steps):
            share = len(steps) / len(frames)
            yield Finding(
                check, Severity.error if share > limits.black else Severity.warning, Place(number, int(steps[0]), key),
                f"{len(steps)} of {len(frames)} frames are {what}", float(share),
                f"Leave the episode out: {delete_command(number)}", len(steps),
            )  # fmt: skip
