"""Array annotations with shapes and dtypes, for numpy and torch alike, without importing torch.

`Float32[Array, "N To P"]` reads: a float32 array or tensor of three dimensions with these names (legend: types.py).
pytest checks the annotations through jaxtyping; a robot computer has no jaxtyping, and there they are only text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped, UInt8
    except ModuleNotFoundError:

        class _Unchecked:
            def __class_getitem__(cls, array_and_dimensions: tuple[Any, str]) -> Any:
                return array_and_dimensions[0]

        Bool = Float = Float32 = Float64 = Int64 = Shaped = UInt8 = _Unchecked

# A numpy array or a torch tensor: the annotation can't name torch, which a robot computer lacks.
Array = Any

__all__ = ["Array", "Bool", "Float", "Float32", "Float64", "Int64", "Shaped", "UInt8"]
