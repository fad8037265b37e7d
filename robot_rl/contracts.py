"""The contracts between stages, environments, policies and hardware: five methods or fewer each.

Plug-ins implement them without importing anything else of the core; `robot-rl` finds them by Hydra's `_target_`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.errors import PolicyError
from robot_rl.specs import EnvSpec
from robot_rl.teleop.commands import DeviceStatus, TeleopCommand
from robot_rl.types import ActionChunk, CameraFrame, CameraStatus, Goal, Observation, Reading, StepResult


@runtime_checkable
class VectorEnv(Protocol):
    """N environments that play action chunks; tensors on `device`.

    `reset` takes the seeds of the episodes to play, as an iterable: the first N start now, and each env that ends an
    episode takes the next seed. When the seeds run out, an env becomes idle (`episode_seeds` -1, `executed` 0). So a
    list plays exactly its episodes whatever N is, and `itertools.count(s)` plays for ever.
    """

    spec: EnvSpec
    num_envs: int
    device: Any

    @property
    def episode_seeds(self) -> Int64[Array, " N"]:
        """Seed of the episode each env is in; -1 when idle."""
        ...

    @property
    def success_at_reset(self) -> Bool[Array, " N"]:
        """Whether the episode each env is in was already solved at its first frame."""
        ...

    def reset(self, seeds: Iterable[int]) -> Observation:
        """Start new episodes. Rows of idle envs repeat their last frame or are zero."""
        ...

    def step(self, chunk: ActionChunk) -> StepResult:
        """Play the first `chunk.execute` actions of every env; an env that ends drops the rest and is reset."""
        ...

    def protocol(self) -> dict[str, Any]:
        """JSON block for reports: task, modes, backend, reward, time limit, terminate_on_success, versions."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


@runtime_checkable
class Policy(Protocol):
    """Observation and noise in, physical actions out: a pure function but for per-env state cleared by `reset`.

    Noise is an argument so that one rule (deploy/noise.py) gives the same actions in torch, ONNX and TensorRT.
    """

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(draws, Tp, A) standard normal numbers wanted per env and decision; draws may be 0.

        The middle one is more than Tp where a policy also denoises actions that it does not return; config.horizon is Tp then.
        """
        ...

    def act(self, observation: Observation, noise: Float32[Array, "N draws Tp A"]) -> ActionChunk:
        """Choose the next chunk."""
        ...

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Forget the state of the envs in `mask` (warm starts, ensembles); a new episode begins there."""
        ...


@runtime_checkable
class DenoisingPolicy(Policy, Protocol):
    """A policy whose denoising steps RL can see."""

    sampler: Any

    def encode(self, observation: Observation) -> Float32[Array, "B C"]:
        """Condition vector of the denoiser."""
        ...

    def reverse_step(
        self, latent: Float32[Array, "B Tp A"], step: int, condition: Float32[Array, "B C"]
    ) -> tuple[Float32[Array, "B Tp A"], float]:
        """Mean and standard deviation of the next latent at denoising step `step` (0 = noisiest)."""
        ...


def check_is_diffusion(policy: Any, where: str, *, hint: str) -> None:
    """Refuse what has no chain of denoising steps: an exported policy, a baseline, a one-step head.

    A head satisfies DenoisingPolicy too, for RL on the head itself, but it has one step and no denoising loss.

    Raises:
        PolicyError: with `hint`.
    """
    if not isinstance(policy, DenoisingPolicy) or policy.sampler.num_steps < 2:
        raise PolicyError(
            where, expected="a diffusion policy (an `imitate`, `offline` or `online` run)", got=type(policy).__name__,
            hint=hint,
        )  # fmt: skip


@runtime_checkable
class Teacher(Protocol):
    """Labels observations with actions (VLA, planner, scripted expert)."""

    def label(self, observation: Observation) -> ActionChunk:
        """What the teacher would do."""
        ...


@runtime_checkable
class Robot(Protocol):
    """A robot arm or its simulation: a bare device. Limits stand in front of it (deploy/safety.py), not inside.

    `spec` says what a policy sees of it and how actions are read, `card` how it is built and commanded.
    """

    spec: EnvSpec
    card: RobotCard

    def connect(self) -> None:
        """Open the connection, wait for the first reading and check names, rates and ages. Nothing moves. Also twice.

        Raises:
            DeployError: naming the joint, stream or topic that is missing or wrong.
        """
        ...

    def read(self) -> Reading:
        """Latest readings with the times of their capture; never waits for new ones."""
        ...

    def command(self, goal: Goal) -> Goal:
        """Send one goal now; returns what was really sent (a driver may clip)."""
        ...

    def stop(self) -> None:
        """Hold where the robot is by its own means, from any state; also twice, also without a connection."""
        ...

    def close(self) -> None:
        """Hold, then close the connection."""
        ...


@runtime_checkable
class Camera(Protocol):
    """A camera. Used by one thread."""

    @property
    def name(self) -> str:
        """As in the key image/<name>."""
        ...

    def connect(self) -> None:
        """Start, wait for frames, check shape and rate; after a failure it may be called again.

        Raises:
            DeployError: the named device is missing, silent, or not as configured.
        """
        ...

    def read(self) -> CameraFrame:
        """The newest frame, at once; the same one again when there is no newer. Its stamp tells its age.

        Raises:
            DeployError: not connected, or the camera has failed for good. A lost or frozen camera is no error
                here: its last frame gets older, and who uses frames judges their age.
        """
        ...

    def status(self) -> CameraStatus:
        """Counters and problems; never raises, never waits."""
        ...

    def close(self) -> None:
        """End the process and free the memory; also twice."""
        ...


@runtime_checkable
class TeleopDevice(Protocol):
    """A person's input device. Used by one thread."""

    @property
    def name(self) -> str:
        """For the screen and the log."""
        ...

    def connect(self) -> None:
        """Open it and check that it answers; after a failure it may be called again.

        Raises:
            DeployError: the named device is missing, or may not be opened; with what to do.
        """
        ...

    def read(self) -> TeleopCommand:
        """The newest command, at once; the same one again when there is no newer. Its stamp tells its age.

        A lost device is no error here: its last command gets older, and the clutch lets go.
        """
        ...

    def status(self) -> DeviceStatus:
        """Counters, problems and help; never raises, never waits."""
        ...

    def close(self) -> None:
        """Give the device back (terminal modes, too); also twice."""
        ...
