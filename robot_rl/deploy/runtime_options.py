"""Options of what runs an exported file, and which of them a policy reads: the others are refused, not ignored."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum

from robot_rl.deploy.engine_cache import Precision
from robot_rl.deploy.onnx_policy import CPU_PROVIDER
from robot_rl.deploy.tensorrt_policy import Runtime
from robot_rl.errors import ConfigError


class PolicyKind(Enum):
    """Where a policy is computed: in onnxruntime and the like from a file, in torch, or by a server."""

    file = "a file"
    checkpoint = "a run or checkpoint directory, which runs in torch"
    served = "a server"


@dataclass(frozen=True)
class RuntimeOptions:
    """See open_policy. Fields in the order of an error."""

    runtime: Runtime = Runtime.onnx
    precision: Precision = Precision.fp32
    provider: str = CPU_PROVIDER
    allow_cpu: bool = False
    threads: int = 1


_OF_ONNXRUNTIME = ("provider", "allow_cpu")
_HINTS = {
    PolicyKind.file: "It is one of onnxruntime: leave it out, or runtime=onnx.",
    PolicyKind.checkpoint: "Leave it out, or run `robot-rl export policy=<run>` and give its policy.onnx.",
    PolicyKind.served: "Give it to `robot-rl serve`: the server has its own.",
}


def require_read(policy: str, kind: PolicyKind, options: RuntimeOptions) -> None:
    """Refuse options that nobody would read.

    Args:
        policy: as it was named.
        kind: of it.
        options: those that differ from the defaults count as given.

    Raises:
        ConfigError: naming them.
    """
    unread = {
        PolicyKind.file: () if options.runtime is Runtime.onnx else _OF_ONNXRUNTIME,
        PolicyKind.checkpoint: ("runtime", "precision", *_OF_ONNXRUNTIME),
        PolicyKind.served: tuple(field.name for field in fields(options)),
    }[kind]
    given = [name for name in unread if getattr(options, name) != getattr(RuntimeOptions, name)]
    if not given:
        return
    words = " ".join(f"{name}={_plain(getattr(options, name))}" for name in given)
    wanted = f"runtime=onnx for {words}" if kind is PolicyKind.file else f"an .onnx file for {words}"
    got = f"runtime={options.runtime.value}" if kind is PolicyKind.file else f"policy={policy}, {kind.value}"
    raise ConfigError(words, expected=wanted, got=got, hint=_HINTS[kind])


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else str(value).lower() if isinstance(value, bool) else value
