"""Serve a policy over a WebSocket, as openpi's servers do: openpi's client and our own PolicyClient can ask it.

Inputs: a run directory, a checkpoint or an exported .onnx file. It serves until Ctrl-C or SIGTERM, on this machine alone
unless the environment variable that `key_env` names holds an API key. GET /healthz says OK, GET /metrics counts.
Outputs: summary.json with requests, errors by kind and latency quantiles in the run directory.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.deploy.computed_by import computed_by
from robot_rl.deploy.engine_cache import Precision
from robot_rl.deploy.noise import NoiseRule
from robot_rl.deploy.server import PolicyServer, ServerOptions
from robot_rl.deploy.serving import MOST_ROWS, noise_of
from robot_rl.deploy.tensorrt_policy import DEFAULT_CACHE, Runtime
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.progress import interruptible
from robot_rl.stages.evaluate import EvaluateConfig, load_any_policy

log = logging.getLogger(__name__)

CAN_RESUME = False
_POLL_S = 0.2


@dataclass(frozen=True)
class ServeConfig:
    """Configuration of `robot-rl serve`.

    Attributes:
        policy: run directory, checkpoint directory or .onnx file (no rti.onnx: that one wants to know what was played).
        host: address to bind; one beyond this machine needs an API key.
        port: to bind; 0 takes a free one (it is logged).
        key_env: environment variable with the API key; clients send `Authorization: Api-Key <key>`. Not set: no key.
        observation: our observation key -> the clients' keys, joined in this order, e.g.
            observation.proprio=[observation/joint_position,observation/gripper_position]. Left out: our own name.
        mode: sampling mode of a diffusion policy (eta0, eta1, mean), or null for the policy's own.
        denoising_steps: of a diffusion policy, as in `evaluate`; null: its own.
        noise_rule: fixed or seeded, or null for the policy's own.
        noise_seed: of the noise, or null for the policy's own.
        runtime, provider, allow_cpu, engine_cache, precision, threads: as in `evaluate`.
        workers: inferences at the same time.
        most_clients: that may be connected.
        most_mb: largest message, 2^20 bytes.
        most_rows: observations in one message, of an evaluation with so many num_envs.
        ping_every_s, ping_timeout_s: a client that answers no ping for so long is dropped.
        seconds: how long to serve; null: until stopped.
        seed, run_root, resume: as in every stage.
    """

    policy: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    key_env: str = "ROBOT_RL_SERVE_KEY"
    observation: dict[str, Any] = field(default_factory=dict)
    mode: SamplingMode | None = None
    denoising_steps: int | None = None
    noise_rule: NoiseRule | None = None
    noise_seed: int | None = None
    runtime: Runtime = Runtime.onnx
    provider: str = "CPUExecutionProvider"
    allow_cpu: bool = False
    engine_cache: str = DEFAULT_CACHE
    precision: Precision = Precision.fp32
    threads: int = 1
    workers: int = 1
    most_clients: int = 16
    most_mb: int = 64
    most_rows: int = MOST_ROWS
    ping_every_s: float = 10.0
    ping_timeout_s: float = 20.0
    seconds: float | None = None
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = ServeConfig


def run(config: ServeConfig, run: RunDirectory) -> dict[str, Any]:
    """Serve until stopped; returns what was served."""
    if not config.policy:
        raise ConfigError("serve", expected="policy=<run or .onnx file>", got="none", hint="Name the policy to serve.")
    if config.policy.startswith(("ws://", "wss://")):
        raise ConfigError(
            "serve", expected="a policy that is computed here", got=config.policy,
            hint="Clients can ask that server themselves; a proxy in front of it needs no robot-rl.",
        )  # fmt: skip
    policy = load_any_policy(
        EvaluateConfig(
            policy=config.policy, mode=config.mode, denoising_steps=config.denoising_steps, runtime=config.runtime,
            provider=config.provider, allow_cpu=config.allow_cpu, engine_cache=config.engine_cache, precision=config.precision,
            threads=config.threads, num_envs=1,
        )
    )  # fmt: skip
    if getattr(policy, "starts_warm", False):
        raise PolicyError(
            config.policy, expected="a policy that decides from the observation alone", got="an rti.onnx",
            hint="It starts from what the client still has to play, which no message says. Serve policy.onnx, or `robot-rl deploy` it.",
        )  # fmt: skip
    noise = noise_of(policy, rule=config.noise_rule, seed=config.noise_seed)
    computed = computed_by(policy, precision=config.precision, threads=config.threads)
    server = PolicyServer(policy, noise, replace(_options(config), computed=computed))
    began = time.monotonic()
    with interruptible() as stop:
        server.start()
        log.info("serving %s on ws://%s:%d", config.policy, config.host, server.port)
        try:
            while not stop.requested and server.is_running and _goes_on(began, config.seconds):
                time.sleep(_POLL_S)
        finally:
            server.close()
    summary = server.metrics.to_json() | {"policy": config.policy, "seconds": time.monotonic() - began}
    run.write_json("summary.json", summary)
    return summary


def _goes_on(began_s: float, seconds: float | None) -> bool:
    return seconds is None or time.monotonic() - began_s < seconds


def _options(config: ServeConfig) -> ServerOptions:
    names = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in config.observation.items()}
    if not all(isinstance(name, str) for value in names.values() for name in value):
        raise ConfigError("observation", expected="texts", got=str(names), hint="observation.proprio=[state]")
    return ServerOptions(
        host=config.host, port=config.port, api_key=os.environ.get(config.key_env, "") if config.key_env else "",
        names=names, most_bytes=config.most_mb << 20, most_rows=config.most_rows, most_clients=config.most_clients, workers=config.workers,
        ping_every_s=config.ping_every_s, ping_timeout_s=config.ping_timeout_s,
    )  # fmt: skip
