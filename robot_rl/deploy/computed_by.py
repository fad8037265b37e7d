"""What a report says of the arithmetic behind a policy: who computes its actions, with how many threads, in which precision."""

from __future__ import annotations

from typing import Any

from robot_rl.deploy.engine_cache import Precision
from robot_rl.deploy.onnx_checks import arithmetic
from robot_rl.deploy.onnx_policy import TENSORRT_PROVIDER


def computed_by(policy: Any, *, precision: Precision, threads: int) -> dict[str, Any]:
    """`provider`, `threads` and `precision` of a policy; JSON types.

    Args:
        policy: torch or numpy. Of a served one (client.py) it is what its server says, null where that says nothing.
        precision: that was asked for; an engine has it.
        threads: that were asked for; of a file it is what it has.
    """
    told = getattr(policy, "computed", None)
    if told is not None:
        return dict(told)
    device = getattr(policy, "device", None)
    provider = getattr(policy, "provider", None) or ("numpy" if device is None else f"torch {device}")
    # What allow_cpu permitted runs in fp32, whatever was asked for.
    is_engine = getattr(policy, "runtime", "") in ("openvino", "tensorrt") or provider == TENSORRT_PROVIDER
    floats = precision if is_engine else Precision.fp32
    return {
        "provider": provider,
        "threads": getattr(policy, "threads", threads),
        "precision": arithmetic(getattr(policy, "metadata", {}), floats.value),
    }
