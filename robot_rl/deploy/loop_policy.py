"""Which policy a robot's loop runs: an exported file, one behind a WebSocket, or, to continue chunks, a checkpoint.

The loop's own process never loads torch: whatever needs it, or a network, is in the process of the policy.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from robot_rl.deploy.client import ClientTimes
from robot_rl.deploy.execution import Execution
from robot_rl.deploy.loop_parts import LoopConfig
from robot_rl.deploy.onnx_policy import CPU_PROVIDER, exported_file
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.runtime_options import PolicyKind, RuntimeOptions, require_read
from robot_rl.deploy.tensorrt_policy import Runtime
from robot_rl.errors import ConfigError, PolicyError

# A robot holds while it waits, so it waits for less than an evaluation does.
ROBOT_TIMES = ClientTimes(connect_s=2.0, answer_s=1.0)


def source_of(
    policy: str, loop: LoopConfig, *, runtime: Runtime = Runtime.onnx, provider: str = CPU_PROVIDER, threads: int = 1,
    server: ClientTimes = ROBOT_TIMES,
) -> PolicySource:  # fmt: skip
    """Where the policy that a person names comes from.

    Args:
        policy: an .onnx file, the run directory of `export`, ws://host:port of `robot-rl serve`; with execution=rtc a run or
            checkpoint directory.
        loop: its execution and chunks.
        runtime, provider, threads: of a file; threads of a checkpoint too.
        server: how long to wait for one.

    Raises:
        PolicyError: none of them.
        ConfigError: options that nobody would read (runtime_options.py), or waits for what is no server.
    """
    is_served = policy.startswith(("ws://", "wss://"))
    is_checkpoint = not is_served and loop.execution is Execution.rtc and exported_file(policy) is None and bool(policy)
    kind = PolicyKind.served if is_served else PolicyKind.checkpoint if is_checkpoint else PolicyKind.file
    require_read(policy, kind, RuntimeOptions(runtime=runtime, provider=provider, threads=threads))
    if not is_served and server != ROBOT_TIMES:
        raise ConfigError(
            "server", expected="policy=ws://host:port", got=f"policy={policy}", hint="Leave server.* out: nobody is waited for."
        )  # fmt: skip
    if is_served:
        return PolicySource(target="robot_rl.deploy.client:open_client", config={"uri": policy, **asdict(server)})
    if is_checkpoint:
        config = {"path": policy, "guidance": loop.chunks.guidance, "threads": threads}
        return PolicySource(target="robot_rl.runs.loop_checkpoint:open_checkpoint", config=config)
    return PolicySource(onnx=str(policy_file(policy)), runtime=runtime, provider=provider, threads=threads)


def policy_file(policy: str) -> Path:
    """The .onnx file of a policy.

    Raises:
        PolicyError: there is none.
    """
    found = exported_file(policy)
    if found is not None and found.is_file():
        return found
    raise PolicyError(
        f"policy={policy}", expected="an exported policy: an .onnx file or a run directory of `export`",
        got="a directory without export/policy.onnx" if policy and Path(policy).is_dir() else "none",
        hint=f"Run `robot-rl export policy={policy or '<run>'}` and give its run directory.",
    )  # fmt: skip
