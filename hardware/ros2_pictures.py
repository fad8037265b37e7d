"""Images, depth, camera models and point clouds out of ROS 2 messages, without ROS."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32, Float64, UInt8
from robot_rl.errors import DeployError, closest

_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
_DEPTH = ("16UC1", "mono16")
# sensor_msgs/PointField: datatype -> numpy.
_FIELDS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


@dataclass(frozen=True)
class CameraModel:
    """What CameraInfo says.

    Attributes:
        width, height: pixels.
        matrix: float64 (3, 3), pixels.
        distortion: float64 (n,), as `model` has it.
        model: "plumb_bob", "rational_polynomial", "equidistant", ...
    """

    width: int
    height: int
    matrix: Float64[Array, "3 3"]
    distortion: Float64[Array, " n"]
    model: str


def colour_of(message: Any) -> UInt8[Array, "H W 3"]:
    """RGB of an Image (rgb8, bgr8, rgba8, bgra8, mono8) or a CompressedImage (JPEG or PNG); mono has equal channels.

    Raises:
        DeployError: another encoding, too few bytes, no decoder installed, or a picture that can't be decoded.
    """
    if not hasattr(message, "encoding"):
        return _decoded(message, colour=True)
    channels = _CHANNELS.get(message.encoding)
    if channels is None:
        raise DeployError(
            "Image, encoding", expected="a colour image", got=repr(message.encoding),
            hint=closest(str(message.encoding), _CHANNELS),
        )  # fmt: skip
    pixels = _rows(message, channels).reshape(message.height, message.width, channels)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    order = [2, 1, 0] if message.encoding.startswith("bgr") else [0, 1, 2]
    return np.ascontiguousarray(pixels[..., order])


def depth_of(message: Any) -> Array:
    """Depth of an Image (16UC1, mono16) or a CompressedImage (16-bit PNG), uint16 (H, W), the sender's unit: mostly mm.

    Raises:
        DeployError: as `colour_of`.
    """
    if not hasattr(message, "encoding"):
        return _decoded(message, colour=False)
    if message.encoding not in _DEPTH:
        raise DeployError(
            "Image, encoding", expected="a depth image", got=repr(message.encoding),
            hint=closest(str(message.encoding), _DEPTH),
        )  # fmt: skip
    rows = _rows(message, 2)
    depth = np.ascontiguousarray(rows).view(">u2" if message.is_bigendian else "<u2")
    return depth.astype(np.uint16)


def _rows(message: Any, pixel_bytes: int) -> np.ndarray:
    """Bytes of the rows without their padding, uint8 (H, W * pixel_bytes)."""
    raw, wanted = _bytes(message.data), message.width * pixel_bytes
    if message.step < wanted or raw.size < message.step * message.height:
        raise DeployError(
            "Image", expected=f"{message.height} rows of at least {wanted} bytes",
            got=f"step {message.step} and {raw.size} bytes", hint="The sender is broken.",
        )  # fmt: skip
    return raw[: message.step * message.height].reshape(message.height, message.step)[:, :wanted]


def _bytes(data: Any) -> np.ndarray:
    """uint8, without a copy where the data is a buffer."""
    try:
        return np.frombuffer(data, np.uint8)
    except TypeError:  # a plain list
        return np.asarray(data, np.uint8)


def _decoded(message: Any, *, colour: bool) -> np.ndarray:
    if "compressedDepth" in message.format:
        raise DeployError(
            "CompressedImage, format", expected="jpeg or png", got=repr(message.format),
            hint="Take the raw depth topic: compressedDepth has a header of its own.",
        )  # fmt: skip
    raw = _bytes(message.data)
    try:
        picture = _decode(raw, colour=colour)
    except DeployError:
        raise
    except Exception as error:  # decoders raise whatever their library does
        raise _broken(message, raw, str(error)) from error
    wanted = (3, np.uint8) if colour else (2, np.uint16)
    if picture is None or (picture.ndim, picture.dtype) != wanted:
        raise _broken(message, raw, "no picture" if picture is None else f"{picture.dtype} {picture.shape}")
    return picture


def _decode(raw: np.ndarray, *, colour: bool) -> np.ndarray | None:
    try:
        import cv2
    except ModuleNotFoundError:
        return _decode_pillow(raw, colour=colour)
    if not raw.size:
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if colour else cv2.IMREAD_UNCHANGED
    picture: np.ndarray | None = cv2.imdecode(raw, flags)
    return picture if picture is None or not colour else np.ascontiguousarray(picture[..., ::-1])


def _decode_pillow(raw: np.ndarray, *, colour: bool) -> np.ndarray:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DeployError(
            "CompressedImage", expected="OpenCV or Pillow to decode it", got="neither is installed",
            hint="pip install pillow, or opencv-python-headless.",
        ) from error  # fmt: skip
    with Image.open(io.BytesIO(raw.tobytes())) as picture:
        return np.array(picture.convert("RGB")) if colour else np.array(picture).astype(np.uint16)


def _broken(message: Any, raw: np.ndarray, why: str) -> DeployError:
    return DeployError(
        "CompressedImage", expected="a whole JPEG or PNG of the wanted kind",
        got=f"{why} from {raw.size} bytes of format {message.format!r}", hint="The sender or the network is broken.",
    )  # fmt: skip


def camera_of(message: Any) -> CameraModel:
    """A CameraInfo.

    Raises:
        DeployError: a focal length that is not above 0, as of cameras that were never calibrated.
    """
    matrix = np.asarray(message.k, np.float64).reshape(3, 3)
    distortion = np.asarray(message.d, np.float64)
    is_finite = np.isfinite(matrix).all() and np.isfinite(distortion).all()
    if not (is_finite and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise DeployError(
            "CameraInfo", expected="focal lengths above 0", got=str(matrix.tolist()),
            hint="The camera is not calibrated: `robot-rl calibrate camera`.",
        )  # fmt: skip
    return CameraModel(int(message.width), int(message.height), matrix, distortion, str(message.distortion_model))


def points_of(message: Any, *, keep_invalid: bool = False) -> Float32[Array, "M D"]:
    """A PointCloud2 as x, y, z in its frame, m, and where it has colour r, g, b from 0 to 1: float32 (M, 3 or 6).

    Args:
        message: sensor_msgs/PointCloud2 with fields x, y, z (float32 or float64) and perhaps rgb or rgba (packed in four
            bytes), found by name.
        keep_invalid: keep points that were not measured, as NaN, so that an organized cloud keeps its rows; else they
            are dropped.

    Raises:
        DeployError: a field is missing or of another type, or there are too few bytes.
    """
    fields = {field.name: field for field in message.fields}
    missing = [name for name in ("x", "y", "z") if name not in fields]
    if missing:
        raise DeployError(
            "PointCloud2", expected="fields x, y and z", got=f"{sorted(fields)}", hint=f"No {', '.join(missing)}."
        )
    order, count = (">" if message.is_bigendian else "<"), message.width * message.height
    raw = _bytes(message.data)
    step, row_step = message.point_step, message.row_step or message.width * message.point_step
    if raw.size < row_step * message.height or row_step < step * message.width:
        raise DeployError(
            "PointCloud2", expected=f"{message.height} rows of {message.width} points of {step} bytes",
            got=f"row_step {row_step} and {raw.size} bytes", hint="The sender is broken.",
        )  # fmt: skip
    rows = raw[: row_step * message.height].reshape(message.height, row_step)[:, : step * message.width]
    packed = np.ascontiguousarray(rows).reshape(count, step)
    parts = [_column(packed, fields[name], order) for name in ("x", "y", "z")]
    colour = fields.get("rgb") or fields.get("rgba")
    if colour is not None:
        parts += _colours(packed, colour, order)
    points = np.stack(parts, axis=1).astype(np.float32)
    is_measured = np.isfinite(points[:, :3]).all(axis=1)
    if keep_invalid:
        points[~is_measured, :3] = np.nan
        return points
    return points[is_measured]


def _column(packed: np.ndarray, field: Any, order: str) -> np.ndarray:
    kind = _FIELDS.get(int(field.datatype), "?")
    if kind not in ("f4", "f8"):
        raise DeployError(
            f"PointCloud2, field {field.name!r}", expected="float32 or float64", got=f"datatype {field.datatype}",
            hint="Convert the cloud at its source.",
        )  # fmt: skip
    return _view(packed, int(field.offset), order + kind, field.name)


def _view(packed: np.ndarray, offset: int, kind: str, name: str) -> np.ndarray:
    size = np.dtype(kind).itemsize
    if offset + size > packed.shape[1]:
        raise DeployError(
            f"PointCloud2, field {name!r}", expected=f"within {packed.shape[1]} bytes", got=f"offset {offset}",
            hint="The sender is broken.",
        )  # fmt: skip
    return np.ascontiguousarray(packed[:, offset : offset + size]).view(kind)[:, 0]


def _colours(packed: np.ndarray, field: Any, order: str) -> list[np.ndarray]:
    """Four bytes as one number 0xAARRGGBB, whatever the type is called."""
    number = _view(packed, int(field.offset), order + "u4", field.name).astype(np.uint32)
    return [((number >> shift) & 255) / 255.0 for shift in (16, 8, 0)]
