"""Images of any usual layout as everything here stores them: uint8 (H, W, 3), RGB, rows from the top."""

from __future__ import annotations

import numpy as np

from robot_rl.arrays import Array, Shaped, UInt8
from robot_rl.errors import DataError
from robot_rl.specs import ArraySpec

RGB = "RGB"


def stored_image(
    image: Shaped[Array, "*batch A B C"], spec: ArraySpec, *, channels: str = RGB, where: str = ""
) -> UInt8[Array, "*batch H W 3"]:
    """Bring an image, or a batch of them, into the stored layout, without loss; what is uncertain is refused.

    Args:
        image: (H, W, 3) or (3, H, W), uint8, or floating point in 0..1.
        spec: of the camera's key: the size that is wanted.
        channels: what the three channels are, as the source declares it. Numbers don't show it.
        where: what held it, for errors.

    Raises:
        DataError: other channels than RGB, another size, a layout that could be either, or floats outside 0..1.
    """
    where, array = where or f"image for {spec.name!r}", np.asarray(image)
    rows, columns, depth = spec.shape
    if channels != RGB:
        raise DataError(
            where, expected=f"{RGB}, as the spec says", got=f"{channels} by its source's declaration",
            hint="Turn the channels round where the image is read (image[..., ::-1] for BGR), and declare RGB.",
        )  # fmt: skip
    last, first = (rows, columns, depth), (depth, rows, columns)
    size = array.shape[-3:]
    if size not in (last, first) or last == first:
        raise DataError(
            where, expected=f"{last} or {first}", got=str(size),
            hint="Resize it where it is read, or use the camera that the policy was trained with.",
        )  # fmt: skip
    if size == first:
        array = np.moveaxis(array, -3, -1)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind != "f" or not (low >= 0 and high <= 1):
        raise DataError(
            where, expected="uint8, or floating point in 0..1", got=f"{array.dtype} in {low:g}..{high:g}",
            hint="Scale it where it is read.",
        )  # fmt: skip
    return np.ascontiguousarray(np.rint(array * 255).astype(np.uint8))
