"""The bowling task for ManiSkill 3: lane, ball and six pins; what is seen, and when it is solved.

World frame: the robot stands at x = -0.615 m, the lane runs along +x, its surface is z = 0. Rims keep ball and pins
on it. The ball (9 cm: too thick to be grasped) lies in front of the robot; the head pin stands 1.17 to 1.23 m from the
robot's base, beyond the tip of an outstretched Panda and beyond a ball pushed that far: only a ball that rolls on by
itself gets there. Rolling is braked, and a ball that is too slow topples too few pins or comes too late.

Seen (obs_mode state), beside the robot: where the head pin was set up, place, velocity and spin of the ball, place and
lean of the pins. Left out: the velocities of the pins, which no action can change any more.

Solved: at least PINS_TO_TOPPLE of the six pins lean more than 45 degrees. There is no fail signal; a missed throw runs
into the time limit.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.agents.robots import Panda
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.registration import register_env
from mani_skill.utils.structs.pose import Pose

from .bowling import ENV_ID

MAX_EPISODE_STEPS = 60
PINS_TO_TOPPLE = 5
ROBOT_X_M = -0.615
BALL_RADIUS_M = 0.045
BALL_DENSITY = 1500.0
PIN_DENSITY = 250.0
# Stands in for rolling resistance, which PhysX does not have: velocity and spin fall by this share a second.
BALL_DAMPING = 0.2
BALL_X_M, BALL_Y_M = (-0.12, -0.04), (-0.08, 0.08)
HEAD_PIN_X_M, HEAD_PIN_Y_M = (0.55, 0.61), (-0.12, 0.12)
PIN_SPACING_M = 0.068
LANE_X_M, LANE_Y_M = (-0.8, 1.2), (-0.45, 0.45)
RIM_HEIGHT_M = 0.06
# Cosine of the lean from which a pin counts as down.
DOWN_COSINE = float(np.cos(np.pi / 4))
# Rows of one, two and three pins, from the head pin on, in spacings.
_ROWS = [(row * np.sqrt(3.0) / 2.0, place - row / 2.0) for row in range(3) for place in range(row + 1)]
PIN_OFFSETS_M = PIN_SPACING_M * np.array(_ROWS)


@register_env(ENV_ID, max_episode_steps=MAX_EPISODE_STEPS)
class BowlingEnv(BaseEnv):  # type: ignore[misc]
    """See the module. Rewards: "sparse" (1 while solved) and "none"."""

    SUPPORTED_ROBOTS = ["panda"]  # noqa: RUF012  (ManiSkill's own names and types)
    SUPPORTED_REWARD_MODES = ("sparse", "none")
    agent: Panda

    def __init__(self, *args: Any, robot_uids: str = "panda", robot_init_qpos_noise: float = 0.02, **kwargs: Any):
        self.robot_init_qpos_noise = robot_init_qpos_noise
        super().__init__(*args, robot_uids=robot_uids, **kwargs)

    @property
    def _default_sensor_configs(self) -> list[CameraConfig]:
        pose = sapien_utils.look_at(eye=[-0.25, 0.75, 0.6], target=[0.35, 0.0, 0.0])
        return [CameraConfig("base_camera", pose, 128, 128, np.pi / 2, 0.01, 100)]

    @property
    def _default_human_render_camera_configs(self) -> CameraConfig:
        pose = sapien_utils.look_at(eye=[0.1, 1.35, 0.95], target=[0.2, 0.0, 0.0])
        return CameraConfig("render_camera", pose, 512, 512, 1, 0.01, 100)

    def _load_agent(self, options: dict[str, Any]) -> None:
        super()._load_agent(options, sapien.Pose(p=[ROBOT_X_M, 0, 0]))

    def _load_scene(self, options: dict[str, Any]) -> None:
        pin_file = str(files("robot_rl.sim_assets") / "bowling_pin.obj")
        polished = sapien.physx.PhysxMaterial(static_friction=0.1, dynamic_friction=0.1, restitution=0.0)
        felt = sapien.physx.PhysxMaterial(static_friction=0.6, dynamic_friction=0.6, restitution=0.0)
        self._build_lane(felt)
        self._smooth_fingers()
        ball = self.scene.create_actor_builder()
        ball.add_sphere_collision(radius=BALL_RADIUS_M, material=polished, density=BALL_DENSITY)
        ball.add_sphere_visual(radius=BALL_RADIUS_M, material=_colour(0.1, 0.2, 0.7))
        ball.initial_pose = sapien.Pose(p=[0, 0, BALL_RADIUS_M])
        self.ball = ball.build_dynamic(name="ball")
        self.ball.set_linear_damping(BALL_DAMPING)
        self.ball.set_angular_damping(BALL_DAMPING)
        self.pins = []
        for index, (x, y) in enumerate(PIN_OFFSETS_M.tolist()):
            pin = self.scene.create_actor_builder()
            pin.add_convex_collision_from_file(pin_file, material=felt, density=PIN_DENSITY)
            pin.add_visual_from_file(pin_file, material=_colour(0.95, 0.93, 0.85))
            pin.initial_pose = sapien.Pose(p=[HEAD_PIN_X_M[0] + x, y, 0])
            self.pins.append(pin.build_dynamic(name=f"pin_{index}"))
        # A painted mark, so that where the pins were set up is part of the simulator's state.
        mark = self.scene.create_actor_builder()
        mark.add_cylinder_visual(radius=0.02, half_length=5e-4, material=_colour(0.8, 0.1, 0.1))
        mark.initial_pose = sapien.Pose(p=[HEAD_PIN_X_M[0], 0, 0])
        self.head_mark = mark.build_kinematic(name="head_mark")

    def _smooth_fingers(self) -> None:
        """Rubber fingertips would grip the ball's side while it rolls, and throw it off its line."""
        smooth = sapien.physx.PhysxMaterial(static_friction=0.1, dynamic_friction=0.1, restitution=0.0)
        for finger in (self.agent.finger1_link, self.agent.finger2_link):
            for body in finger._bodies:
                for shape in body.collision_shapes:
                    shape.physical_material = smooth

    def _build_lane(self, material: Any) -> None:
        (left, right), (near, far) = LANE_X_M, LANE_Y_M
        x, y, half_x, half_y = (left + right) / 2, (near + far) / 2, (right - left) / 2, (far - near) / 2
        thick = 0.02
        boxes = [((x, y, -thick), (half_x, half_y, thick), (0.55, 0.4, 0.25))]
        for sign in (-1, 1):
            for middle, half in (
                ((x + sign * (half_x + thick), y), (thick, half_y + 2 * thick)),
                ((x, y + sign * (half_y + thick)), (half_x, thick)),
            ):
                boxes.append(((*middle, RIM_HEIGHT_M / 2 - thick), (*half, RIM_HEIGHT_M / 2 + thick), (0.3, 0.2, 0.1)))
        lane = self.scene.create_actor_builder()
        for position, half_size, colour in boxes:
            lane.add_box_collision(sapien.Pose(p=position), half_size=half_size, material=material)
            lane.add_box_visual(sapien.Pose(p=position), half_size=half_size, material=_colour(*colour))
        lane.initial_pose = sapien.Pose()
        lane.build_static(name="lane")

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict[str, Any]) -> None:
        # Drawn per env from its own seed, so that an episode is the same in any batch.
        rng = self._batched_episode_rng[env_idx]
        count = len(env_idx)
        qpos = self.agent.keyframes["rest"].qpos + rng.normal(0.0, self.robot_init_qpos_noise, 9).reshape(count, 9)
        qpos[:, -2:] = 0.04
        self.agent.reset(qpos)
        self.agent.robot.set_pose(sapien.Pose([ROBOT_X_M, 0, 0]))
        low = [BALL_X_M[0], BALL_Y_M[0], HEAD_PIN_X_M[0], HEAD_PIN_Y_M[0]]
        high = [BALL_X_M[1], BALL_Y_M[1], HEAD_PIN_X_M[1], HEAD_PIN_Y_M[1]]
        place = torch.as_tensor(rng.uniform(low, high).reshape(count, 4), dtype=torch.float32, device=self.device)
        _put(self.ball, place[:, :2], BALL_RADIUS_M)
        _put(self.head_mark, place[:, 2:], 0.0)
        offsets = torch.as_tensor(PIN_OFFSETS_M, dtype=torch.float32, device=self.device)
        for pin, offset in zip(self.pins, offsets, strict=True):
            _put(pin, place[:, 2:] + offset, 0.0)

    def pins_up(self) -> torch.Tensor:
        """Cosine of each pin's lean, float32 (N, 6): 1 stands, 0 lies."""
        quaternion = torch.stack([pin.pose.q for pin in self.pins], dim=1)
        return 1.0 - 2.0 * (quaternion[..., 1] ** 2 + quaternion[..., 2] ** 2)

    def evaluate(self) -> dict[str, torch.Tensor]:
        """`pins_down` int64 (N,) and `success` bool (N,)."""
        down = (self.pins_up() < DOWN_COSINE).sum(dim=1)
        return {"pins_down": down, "success": down >= PINS_TO_TOPPLE}

    def _get_obs_extra(self, info: dict[str, Any]) -> dict[str, torch.Tensor]:
        seen = {"tcp_pose": self.agent.tcp.pose.raw_pose}
        if self.obs_mode_struct.use_state:
            seen |= {
                "head_pos": self.head_mark.pose.p,
                "ball_pos": self.ball.pose.p,
                "ball_vel": self.ball.linear_velocity,
                "ball_spin": self.ball.angular_velocity,
                "pins_pos": torch.cat([pin.pose.p for pin in self.pins], dim=1),
                "pins_up": self.pins_up(),
            }
        return seen


def _colour(red: float, green: float, blue: float) -> Any:
    return sapien.render.RenderMaterial(base_color=[red, green, blue, 1.0], roughness=0.5)


def _put(actor: Any, xy: torch.Tensor, height: float) -> None:
    """Upright and at rest at `xy` (N, 2), m."""
    actor.set_pose(Pose.create_from_pq(p=torch.nn.functional.pad(xy, (0, 1), value=height)))
    if actor.px_body_type == "dynamic":
        actor.set_linear_velocity(torch.zeros(3))
        actor.set_angular_velocity(torch.zeros(3))
