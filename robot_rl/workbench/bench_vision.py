"""`bench vision`: frames/s of drawing and encoding, samples/s of training, RGB and points, and the share of each.

Drawing: one env of `--env` (a ManiSkill task) stepped with states alone, with one camera of `--image-size`, and with 512
points of it; what is more than the step with states is drawing (for points, with farthest-point sampling). Where nothing
can draw, this part says "not run" and why; the other two take random pictures of the same size.
Encoding: `encoder=rgb` and `encoder=points` as configured, a decision at a time and in batches.
Training: one gradient step as in `bench train`, and its parts: cutting windows, and the encoder forward and backward.
The ratios are shares: what part of the whole's time its part takes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from robot_rl.data.normalizer import Normalizer
from robot_rl.data.windows import StepArrays, WindowSampler
from robot_rl.errors import EnvError
from robot_rl.runs.composition import compose_config
from robot_rl.runs.config import build
from robot_rl.runs.training import TrainConfig, update_average
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import ActionChunk
from robot_rl.workbench.bench_env import random_actions
from robot_rl.workbench.bench_timing import BenchError, Comparison, Contender, Measurement, Options, Report, interleave

POINTS = 512
KINDS = ("rgb", "points")
CAMERA = "image/base_camera"
# Samples a gradient step: images at 128 x 128 take a second or more of one core each ten.
BATCH = {"rgb": 16, "points": 64}
STEPS = 5
EPISODES, LENGTH = 4, 50


@dataclass
class _Drawn:
    """Envs that are stepped, by what they show; or why there are none."""

    envs: dict[str, Any]
    reason: str | None
    rendering: str


def run(options: Options) -> Report:
    """Measure drawing, encoding and training.

    Raises:
        BenchError: `--env` is no ManiSkill task.
        ConfigError: unknown `--env`.
    """
    torch.set_num_threads(options.threads)
    drawn = _envs(options)
    contenders = [_stepped(env, f"env step, {name}") for name, env in drawn.envs.items()]
    comparisons, trained = [], {}
    for kind in KINDS:
        trained[kind] = _Trained(kind, options.image_size)
        contenders += trained[kind].contenders()
        whole = f"train {kind}"
        comparisons += [Comparison(whole, f"{whole}: {part}") for part in ("windows", "encoder")]
        if kind in drawn.envs:
            comparisons.append(Comparison(f"env step, {kind}", "env step, state"))
    measured = interleave(contenders, rounds=options.rounds)
    for env in drawn.envs.values():
        env.close()
    shares = shares_of({m.name: m for m in measured})
    facts: dict[str, Any] = {
        "rendering": {"not_run": drawn.reason} if drawn.reason else drawn.rendering,
        "image_size": options.image_size, "points": POINTS, "threads": options.threads, "batch": BATCH, "shares": shares,
        "parameters": {kind: one.parameters for kind, one in trained.items()}, "table": _table(shares, drawn),
    }  # fmt: skip
    return Report(measured, tuple(comparisons), facts)


def shares_of(measured: dict[str, Measurement]) -> dict[str, dict[str, float]]:
    """Shares of time, from median times of one frame or sample.

    Returns:
        "frame <kind>": of physics, drawing and encoding of one frame in a roll-out (only where it was drawn);
        "training <kind>": of cutting windows, the encoder, and the rest (denoiser, optimiser, average).
    """
    found = {}
    one = {name: 1 / m.rate for name, m in measured.items()}
    for kind in KINDS:
        if f"env step, {kind}" in one:
            physics = min(one["env step, state"], one[f"env step, {kind}"])
            drawing, encoding = one[f"env step, {kind}"] - physics, one[f"encode {kind}, 1"]
            total = physics + drawing + encoding
            found[f"frame {kind}"] = {
                "physics": physics / total, "drawing": drawing / total, "encoding": encoding / total
            }  # fmt: skip
        whole = one[f"train {kind}"]
        windows, encoder = (min(1.0, one[f"train {kind}: {part}"] / whole) for part in ("windows", "encoder"))
        rest = max(0.0, 1 - windows - encoder)
        found[f"training {kind}"] = {"windows": windows, "encoder": encoder, "rest": rest}
    return found


def _table(shares: dict[str, dict[str, float]], drawn: _Drawn) -> list[tuple[str, str]]:
    rows = [("share of time", "")]
    for kind in KINDS:
        if drawn.reason:
            rows.append((f"frame {kind}", f"not run: {drawn.reason}"))
        for name in (f"frame {kind}", f"training {kind}"):
            if name in shares:
                rows.append((name, ", ".join(f"{part} {share:.0%}" for part, share in shares[name].items())))
    return rows


def _envs(options: Options) -> _Drawn:
    node = compose_config([f"env={options.env}"], name="evaluate")["env"]
    if not str(node.get("_target_", "")).endswith(".maniskill.make_env"):
        raise BenchError(
            f"--env {options.env}", expected="a ManiSkill task", got=str(node.get("_target_")),
            hint="Others draw nothing, or draw without a renderer.",
        )  # fmt: skip
    node |= {"terminate_on_success": False, "reward_mode": "sparse", "sim_backend": "physx_cpu"}
    seen = node | {"image_size": options.image_size}
    # First one that draws: a process that began without a renderer keeps to it.
    wanted = {
        "rgb": seen | {"obs_mode": "rgb"},
        "points": seen | {"obs_mode": "pointcloud", "points": {"num_points": POINTS}},
        "state": node | {"obs_mode": "state"},
    }
    envs: dict[str, Any] = {}
    try:
        for name, each in wanted.items():
            envs[name] = build(each, num_envs=1, history=1)
            envs[name].reset(itertools.count(0))
    except (EnvError, ImportError) as error:
        for env in envs.values():
            env.close()
        return _Drawn({}, " ".join(str(error).split()), "")
    return _Drawn(envs, None, str(envs["rgb"].protocol()["rendering"]))


def _stepped(env: Any, name: str) -> Contender:
    chunk = ActionChunk(actions=random_actions(STEPS, env.spec.action.size)[None], execute=STEPS)
    return Contender(name, lambda: env.step(chunk), STEPS, "frames")


class _Trained:
    """A policy with random weights on random episodes that look like the task's.

    Args:
        kind: "rgb" or "points".
        image_size: pixels a side.
    """

    def __init__(self, kind: str, image_size: int) -> None:
        self._kind, self._batch = kind, BATCH[kind]
        node = compose_config([f"encoder={kind}"], name="imitate")["policy"]
        spec, arrays = _episodes(kind, image_size)
        torch.manual_seed(0)
        sizes = {"proprio": 18, "action": 7} | ({"points": 6} if kind == "points" else {})
        self._policy = build(node, spec=spec, normalizer=Normalizer.identity(sizes)).train()
        config = self._policy.config
        self._windows = WindowSampler(
            arrays, history=config.history, horizon=config.horizon, execute=config.execute,
            keys=tuple(config.observation_keys), episodes=np.arange(EPISODES), device="cpu",
        )  # fmt: skip
        self._train, self._generator = TrainConfig(), torch.Generator().manual_seed(0)
        self.parameters = sum(p.numel() for p in self._policy.parameters())

    def contenders(self) -> Sequence[Contender]:
        """Encoding of one observation and of a batch, a gradient step, and its parts."""
        kind, batch, config = self._kind, self._batch, self._policy.config
        whole = self._windows.window(np.arange(batch), with_next=False).observation

        def encode(rows: int) -> Callable[[], object]:
            seen = whole.map(lambda array: array[:rows])

            def call() -> object:
                with torch.inference_mode():
                    return self._policy.encode(seen)

            return call

        def forward_and_backward() -> None:
            condition, penalty, _ = self._policy.training_condition(whole, self._generator)
            (condition.sum() + (0 if penalty is None else penalty)).backward()

        frames, name = config.history, f"train {kind}"
        return (
            Contender(f"encode {kind}, 1", encode(1), frames, "frames", repeats=3),
            Contender(f"encode {kind}, {batch}", encode(batch), frames * batch, "frames"),
            Contender(name, self._gradient_step(), batch, "samples"),
            Contender(f"{name}: windows", lambda: self._windows.sample(batch, self._generator), batch, "samples"),
            Contender(f"{name}: encoder", forward_and_backward, batch, "samples"),
        )

    def _gradient_step(self) -> Callable[[], None]:
        policy, config = self._policy, self._train
        average = copy.deepcopy(policy).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, fused=True)

        def step() -> None:
            loss, _parts = policy.loss(self._windows.sample(self._batch, self._generator), self._generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_norm)
            optimizer.step()
            update_average(average, policy, step=1000, ema_max=config.ema_max)

        return step


def _episodes(kind: str, image_size: int) -> tuple[EnvSpec, StepArrays]:
    """PickCube's proprio and action beside random pictures or points."""
    seen = {
        "rgb": ArraySpec(CAMERA, (image_size, image_size, 3), "uint8"),
        "points": ArraySpec("points", (POINTS, 6)),
    }[kind]
    rng, rows = np.random.default_rng(0), EPISODES * (LENGTH + 1)
    shape = (rows, *seen.shape)
    is_picture = seen.dtype == "uint8"
    what = rng.integers(0, 256, shape, np.uint8) if is_picture else rng.random(shape, np.float32)
    spec = EnvSpec(
        env_id="random", observation={"proprio": ArraySpec("proprio", (18,)), seen.name: seen},
        action=ArraySpec("action", (7,), low=(-1.0,) * 7, high=(1.0,) * 7),
        action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "delta"),
        joint_names=(), robot="random", control_hz=20.0, max_episode_steps=LENGTH,
    )  # fmt: skip
    steps = EPISODES * LENGTH
    return spec, StepArrays(
        frames={"proprio": rng.standard_normal((rows, 18)).astype(np.float32), seen.name: what},
        action=rng.uniform(-1, 1, (steps, 7)).astype(np.float32), reward=np.zeros(steps, np.float32),
        done=np.zeros(steps, bool), source=np.zeros(steps, np.uint8),
        lengths=np.full(EPISODES, LENGTH, np.int64), success=np.ones(EPISODES, bool),
    )  # fmt: skip
