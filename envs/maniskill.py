"""ManiSkill 3 tasks behind the VectorEnv contract: state, RGB or point clouds, CPU physics or GPU physics.

Observations: obs_mode "state" ("state_dict" is the same) gives "state", flattened exactly as ManiSkill flattens it,
and "proprio", its leading part about the robot. "rgb" gives "proprio" and "image/<camera>", "rgb+depth" also
"depth/<camera>", "pointcloud" "proprio" and "points"; the spec says where the cameras are. Images and points come without
anything that only a simulator knows: a goal that a task hides from its cameras (PickCube-v1's) is then nowhere to be seen.

CPU physics: an episode depends on its seed alone, bit for bit, whatever ran before or beside it.
GPU physics: written against mani_skill 3.0.1's source, not run on a GPU yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

from robot_rl.algorithms.disturbance import Push, Shift
from robot_rl.algorithms.view_shift import ViewShift
from robot_rl.deploy.point_cloud import PointCloudConfig, check_point_config
from robot_rl.errors import EnvError, closest

from .headless import RenderingChoice, prepare_rendering
from .history import HistoryEnv, StepEnv
from .maniskill_bodies import check_shift, kick_of, shift_starts
from .maniskill_fast import check_supported, install
from .maniskill_moved import mover_of
from .maniskill_sim import CpuEnvs, GpuEnvs
from .maniskill_views import Views
from .perturbations import pushed
from .perturbations_view import seen_otherwise

_OBS_MODES = ("state", "state_dict", "rgb", "rgb+depth", "pointcloud")


class SimBackend(str, Enum):
    """Where physics runs. physx_cpu: one scene per env, one after the other; physx_cuda: all envs in one batch."""

    physx_cpu = "physx_cpu"
    physx_cuda = "physx_cuda"


class RewardMode(str, Enum):
    """ManiSkill's rewards. sparse: success minus fail; normalized_dense: the dense reward over its maximum."""

    sparse = "sparse"
    dense = "dense"
    normalized_dense = "normalized_dense"
    none = "none"


@dataclass(frozen=True)
class ManiSkillConfig:
    """Which task, and how it is seen and driven.

    Attributes:
        task: ManiSkill's id, e.g. "PickCube-v1".
        obs_mode: "state", "state_dict", "rgb", "rgb+depth" or "pointcloud".
        control_mode: the robot's controller, by ManiSkill's name.
        sim_backend: see SimBackend.
        reward_mode: see RewardMode.
        terminate_on_success: whether success ends an episode.
        max_episode_steps: time limit; None takes the task's own.
        image_size: rows and columns of every camera, pixels.
        points: how a point cloud is cropped and sampled, on the env's device; None: every pixel of every camera.
        with_state: beside images or points also "state", for scripted experts; a policy sees its observation_keys alone.
        vulkan_icd: path of the Vulkan driver's json to render with; None looks for one (headless.py).
        fast_cpu: twice as fast on CPU physics for the tasks that maniskill_fast.py lists; equal up to rounding.
        push: a push in every episode, of an object of maniskill_bodies.py or of the action; None for none.
        shift: starts moved away from the task's own, for the tasks of maniskill_bodies.py; None for the task's own.
        view_shift: other cameras, lights and colours than the spec says; None for the task's own.
    """

    task: str
    obs_mode: str = "state"
    control_mode: str = "pd_ee_delta_pos"
    sim_backend: SimBackend = SimBackend.physx_cpu
    reward_mode: RewardMode = RewardMode.sparse
    terminate_on_success: bool = True
    max_episode_steps: int | None = None
    image_size: int = 128
    points: PointCloudConfig | None = None
    with_state: bool = False
    vulkan_icd: str | None = None
    fast_cpu: bool = False
    push: Push | None = None
    shift: Shift | None = None
    view_shift: ViewShift | None = None


def make_env(config: ManiSkillConfig, *, num_envs: int, history: int) -> HistoryEnv:
    """Build `num_envs` envs of one task with `history` frames per observation.

    Raises:
        EnvError: unknown task, observation or control mode, missing assets, no renderer, no time limit, or a push or
            shift that this task can't have.
    """
    if config.obs_mode not in _OBS_MODES:
        raise EnvError(
            "obs_mode",
            expected="an observation mode that robot-rl reads",
            got=repr(config.obs_mode),
            hint=closest(config.obs_mode, _OBS_MODES),
        )
    if config.points is not None:
        if config.obs_mode != "pointcloud":
            raise EnvError(
                "points",
                expected="obs_mode=pointcloud",
                got=config.obs_mode,
                hint="Set obs_mode=pointcloud, or leave points empty.",
            )
        check_point_config(config.points)
    if num_envs < 1:
        raise EnvError("num_envs", expected="1 or more", got=str(num_envs), hint="Correct the configuration.")
    if config.fast_cpu:
        check_supported(task=config.task, control_mode=config.control_mode, sim_backend=config.sim_backend.value)
    kind = {"task": config.task, "sim_backend": config.sim_backend.value}
    if config.shift is not None:
        check_shift(config.shift, **kind)
    rendering = prepare_rendering(config.obs_mode, vulkan_icd=config.vulkan_icd)
    registered = _registered(config.task)
    limit = config.max_episode_steps or registered.max_episode_steps
    if limit is None:
        raise EnvError(
            config.task, expected="a time limit", got="none in ManiSkill's registry", hint="Set max_episode_steps."
        )
    facts = _protocol(config, rendering)
    views = Views(config.points, config.with_state)
    sim: StepEnv
    if config.sim_backend is SimBackend.physx_cpu:
        envs = [_make_one(config, rendering, num_envs=1) for _ in range(num_envs)]
        kick = kick_of(envs, config.push, **kind)
        sim = CpuEnvs(envs, task=config.task, max_episode_steps=limit, facts=facts, views=views)
        move = mover_of(envs, config.view_shift, **kind)
    else:
        kick, move = kick_of([], config.push, **kind), None
        env = _make_one(config, rendering, num_envs=num_envs)
        sim = GpuEnvs(env, task=config.task, max_episode_steps=limit, facts=facts, views=views)
    sim = seen_otherwise(pushed(sim, config.push, kick=kick), config.view_shift, move=move)
    return HistoryEnv(sim, history=history, terminate_on_success=config.terminate_on_success)


def _registered(task: str) -> Any:
    import mani_skill.envs  # noqa: F401  (fills the registry)
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    if task not in REGISTERED_ENVS:
        raise EnvError("task", expected="a ManiSkill task", got=repr(task), hint=closest(task, REGISTERED_ENVS))
    registered = REGISTERED_ENVS[task]
    for asset in registered.asset_download_ids or []:
        sources = (
            assets.expand_data_group_into_individual_data_source_ids(asset) if asset in assets.DATA_GROUPS else [asset]
        )
        if not all(assets.is_data_source_downloaded(source) for source in sources):
            raise EnvError(
                task,
                expected=f"its assets {asset!r} on this machine",
                got="none",
                hint=f"Run `python -m mani_skill.utils.download_asset {asset}`.",
            )
    return registered


def _make_one(config: ManiSkillConfig, rendering: RenderingChoice, *, num_envs: int) -> Any:
    """One ManiSkill BaseEnv, without gymnasium's wrappers: HistoryEnv keeps the time limit."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    _quieten()
    registered = REGISTERED_ENVS[config.task]
    options: dict[str, Any] = {
        "num_envs": num_envs,
        "obs_mode": "state" if config.obs_mode == "state_dict" else config.obs_mode,
        "reward_mode": config.reward_mode.value,
        "sim_backend": config.sim_backend.value,
        "render_backend": rendering.render_backend,
        "sensor_configs": {"width": config.image_size, "height": config.image_size},
    }
    with _without_prompts(config.task):
        try:
            env = registered.make(control_mode=config.control_mode, **options)
        except (AssertionError, KeyError) as error:
            env = registered.make(control_mode=None, **options)
            agent = env.agent
            modes = getattr(agent, "supported_control_modes", None)
            env.close()
            if modes is None or config.control_mode in modes:
                raise
            raise EnvError(
                f"control_mode of {config.task}",
                expected=f"a controller of the robot {agent.uid}",
                got=repr(config.control_mode),
                hint=closest(config.control_mode, modes),
            ) from error
        except NotImplementedError as error:
            raise EnvError(
                config.task,
                expected="a reward and observation mode that the task has",
                got=f"reward_mode={config.reward_mode.value}, obs_mode={config.obs_mode} ({error})",
                hint=f"Rewards of this task: {', '.join(registered.cls.SUPPORTED_REWARD_MODES)}.",
            ) from error
    if config.fast_cpu:
        install(env)
    if config.shift is not None:
        shift_starts(env, config.shift, task=config.task, sim_backend=config.sim_backend.value)
    return env


@contextmanager
def _without_prompts(task: str) -> Iterator[None]:
    """ManiSkill asks on standard input whether to download a robot; a training run must fail instead."""
    from mani_skill.utils import download_asset

    original = download_asset.prompt_yes_no

    def refuse(message: str) -> bool:
        raise EnvError(
            task,
            expected="all assets on this machine",
            got=message,
            hint="Run `python -m mani_skill.utils.download_asset <name>` with the name above.",
        )

    download_asset.prompt_yes_no = refuse
    try:
        yield
    finally:
        download_asset.prompt_yes_no = original


class _NoInitialPose(logging.Filter):
    """Drops advice to authors of tasks about initial poses: users can't act on it, and it comes once per object."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "No initial pose set for" not in record.getMessage()


def _quieten() -> None:
    from mani_skill import logger

    if not any(isinstance(existing, _NoInitialPose) for existing in logger.filters):
        logger.addFilter(_NoInitialPose())


def _protocol(config: ManiSkillConfig, rendering: RenderingChoice) -> dict[str, Any]:
    asked: dict[str, Any] = {} if config.shift is None else {"shift": config.shift.to_json()}
    if config.with_state:
        asked["with_state"] = True
    if config.points is not None:
        asked["points"] = asdict(config.points) | {"sampling": config.points.sampling.value}
    return asked | {
        "task": config.task,
        "obs_mode": config.obs_mode,
        "control_mode": config.control_mode,
        "reward_mode": config.reward_mode.value,
        "sim_backend": config.sim_backend.value,
        "fast_cpu": config.fast_cpu,
        "image_size": None if config.obs_mode.startswith("state") else config.image_size,
        "rendering": f"{rendering.kind.value}: {rendering.detail}",
        "versions": {name: version(name) for name in ("mani_skill", "sapien", "numpy", "torch")},
    }
