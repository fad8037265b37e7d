"""PushT (gym-pusht 0.1.8): a round pusher moves a T-shaped block onto its goal, in the plane, at 10 Hz.

An action is where the pusher shall go (absolute, px). The state is the pusher's position and the eight corners of the
block: no angle that jumps at a full turn. Solved: the block covers more than 95 % of the goal. Task and figures: Chi et
al. 2023, "Diffusion Policy", section 5. The pusher's velocity is in no observation, as in that paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from robot_rl.algorithms.disturbance import Push
from robot_rl.errors import EnvError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec

from .gymnasium import GymnasiumConfig, GymnasiumEnvs, make_one, spec_of
from .history import HistoryEnv
from .perturbations import pushed

ENV_ID = "gym_pusht/PushT-v0"
STATE_SIZE = 18
CAMERA = "image/top"
_CORNERS = tuple(f"block corner {corner} {axis}" for corner in range(8) for axis in "xy")


@dataclass(frozen=True)
class PushTConfig:
    """Options of PushT.

    Attributes:
        images: whether to draw "image/top" too, uint8 (image_size, image_size, 3).
        image_size: rows and columns, pixels.
        terminate_on_success: must be true: gym-pusht ends an episode at success itself.
        max_episode_steps: time limit (gym-pusht's own: 300 steps, 30 s).
        push: an offset, px, on the pusher's target in every episode, or None.
    """

    images: bool = False
    image_size: int = 96
    terminate_on_success: bool = True
    max_episode_steps: int = 300
    push: Push | None = None


def make_env(config: PushTConfig, *, num_envs: int, history: int) -> HistoryEnv:
    """Build `num_envs` PushT envs with `history` frames per observation.

    Raises:
        EnvError: gym-pusht is missing, or there are no envs.
    """
    if num_envs < 1:
        raise EnvError("num_envs", expected="1 or more", got=str(num_envs), hint="Correct the configuration.")
    _require_package()
    observation = {"proprio": ["agent_pos"], "state": ["agent_pos", "environment_state"]}
    options: dict[str, Any] = {"obs_type": "environment_state_agent_pos", "disable_env_checker": True}
    if config.images:
        size = config.image_size
        observation |= {CAMERA: ["pixels"]}
        options |= {"observation_width": size, "observation_height": size}
    plain = GymnasiumConfig(
        env_id=ENV_ID,
        options=options,
        observation=observation,
        success_key="is_success",
        terminate_on_success=config.terminate_on_success,
        max_episode_steps=config.max_episode_steps,
    )
    envs = [make_one(ENV_ID, options) for _ in range(num_envs)]
    if config.images:
        envs = [_with_pixels(env) for env in envs]
    spec = _with_meaning(spec_of(envs[0], plain, max_episode_steps=config.max_episode_steps))
    sim = GymnasiumEnvs(envs, spec, plain, packages=("gym-pusht", "pymunk"))
    return HistoryEnv(pushed(sim, config.push), history=history, terminate_on_success=config.terminate_on_success)


def _require_package() -> None:
    """Import gym-pusht, which registers its environment, without a window or pygame's greeting."""
    import os

    # pygame reads these at its import; nothing here opens a window.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import gym_pusht  # noqa: F401
    except ModuleNotFoundError as error:
        raise EnvError(
            ENV_ID,
            expected="the package gym-pusht",
            got=str(error),
            hint="Run `pip install 'robot-rl[pusht]'`.",
        ) from error


def _with_pixels(env: Any) -> Any:
    """The env with the picture as "pixels" beside the numbers (gym-pusht gives one or the other)."""
    import gymnasium

    plain = env.unwrapped
    image = gymnasium.spaces.Box(0, 255, (plain.observation_height, plain.observation_width, 3), dtype="uint8")
    space = gymnasium.spaces.Dict({**env.observation_space.spaces, "pixels": image})
    # The private _render draws what obs_type "pixels" would give; the public one adds the marker of the last action.
    return gymnasium.wrappers.TransformObservation(env, lambda seen: {**seen, "pixels": plain._render()}, space)


def _with_meaning(spec: EnvSpec) -> EnvSpec:
    def pixels(array: ArraySpec, meanings: tuple[str, ...]) -> ArraySpec:
        return replace(array, units=("px",) * array.size, meanings=meanings)

    observation = dict(spec.observation)
    observation["proprio"] = pixels(observation["proprio"], ("pusher x", "pusher y"))
    observation["state"] = pixels(observation["state"], ("pusher x", "pusher y", *_CORNERS))
    return replace(
        spec,
        observation=observation,
        action=pixels(spec.action, ("target x", "target y")),
        action_semantics=ActionSemantics(
            kind=ActionKind.absolute,
            delta_reference=DeltaReference.none,
            frame="image, y down",
            rotation="none",
            gripper="none",
            control_mode="pd_target_position",
        ),
        joint_names=("x", "y"),
        robot="pusher",
    )
