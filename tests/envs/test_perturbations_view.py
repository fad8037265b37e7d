"""Domain shift of pictures: colours by hand, cameras and lights in a real scene, and none of it told to the policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from software_vulkan import run_rendered

from robot_rl.algorithms.view_shift import ViewShift, with_strength
from robot_rl.envs.perturbations_view import ViewShiftedSteps, recoloured
from robot_rl.envs.point_reach import PointReach, PointReachConfig, make_env
from robot_rl.errors import ConfigError, EnvError
from robot_rl.types import ActionChunk


def test_a_third_of_a_turn_takes_red_to_green_and_grey_stays() -> None:
    shift = ViewShift(hue_deg=120.0)
    seeds = {shift.draw(seed).hue_sign: seed for seed in range(20)}
    forth = torch.from_numpy(shift.colour_matrix(shift.draw(seeds[1]))).float()[None]
    back = torch.from_numpy(shift.colour_matrix(shift.draw(seeds[-1]))).float()[None]
    picture = torch.tensor([[[[200, 0, 0], [0, 200, 0], [90, 90, 90], [255, 10, 3]]]], dtype=torch.uint8)
    assert recoloured("image/a", picture, forth).tolist() == [[[[0, 200, 0], [0, 0, 200], [90, 90, 90], [3, 255, 10]]]]
    assert torch.equal(recoloured("image/a", recoloured("image/a", picture, forth), back), picture)
    points = torch.tensor([[[0.5, -2.0, 3.0, 1.0, 0.0, 0.0], [0, 0, 0, 0, 0, 0]]])
    turned = recoloured("points", points, forth)
    torch.testing.assert_close(turned, torch.tensor([[[0.5, -2.0, 3.0, 0.0, 1.0, 0.0], [0, 0, 0, 0, 0, 0]]]))
    depth = torch.rand(1, 4, 4, 1)
    assert recoloured("depth/a", depth, forth) is depth
    assert recoloured("points", points[..., :3], forth).equal(points[..., :3])


def test_brightness_by_hand_and_clipped() -> None:
    shift = ViewShift(brightness=0.5)
    signs = {}
    for seed in range(20):
        drawn = shift.draw(seed)
        matrix = torch.from_numpy(shift.colour_matrix(drawn)).float()[None]
        picture = torch.full((1, 1, 1, 3), 180, dtype=torch.uint8)
        signs[drawn.brightness_sign] = int(recoloured("image/a", picture, matrix)[0, 0, 0, 0])
    assert signs == {1: 255, -1: 90}  # 270 is clipped


def test_directions_are_the_seeds_alone_and_spread_over_the_sphere() -> None:
    weak, strong = ViewShift(camera_deg=1.0), ViewShift(camera_deg=9.0, light_stops=2.0)
    np.testing.assert_array_equal(weak.draw(5, cameras=2).turn_axis, strong.draw(5, cameras=2).turn_axis)
    assert not np.array_equal(weak.draw(5, cameras=2).turn_axis, weak.draw(6, cameras=2).turn_axis)
    assert not np.array_equal(weak.draw(5).light_axis, ViewShift(camera_deg=1.0, seed=1).draw(5).light_axis)
    axes = np.concatenate([weak.draw(seed, cameras=1).turn_axis for seed in range(2000)])
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1)
    # Uniform on the sphere: mean 0, second moments 1/3, each within four standard errors.
    assert np.abs(axes.mean(0)).max() < 4 / math.sqrt(3 * 2000)
    np.testing.assert_allclose(axes.T @ axes / 2000, np.eye(3) / 3, atol=4 * 0.3 / math.sqrt(2000))


def test_an_env_shows_other_colours_and_the_same_episode_in_any_batch() -> None:
    shift = ViewShift(hue_deg=120.0)
    plain = make_env(PointReachConfig(image_size=8, num_points=4), num_envs=3, history=1)
    seen = make_env(PointReachConfig(image_size=8, num_points=4, view_shift=shift), num_envs=3, history=1)
    alone = make_env(PointReachConfig(image_size=8, num_points=4, view_shift=shift), num_envs=1, history=1)
    assert seen.spec == plain.spec
    assert seen.protocol()["view_shift"] == shift.to_json()
    assert "view_shift" not in plain.protocol()
    seeds = [4, 5, 6]
    first, other = plain.reset(seeds), seen.reset(seeds)
    chunk = ActionChunk(actions=torch.full((3, 2, 2), 0.3), execute=2)
    for before, after in ((first, other), (plain.step(chunk).observation, seen.step(chunk).observation)):
        torch.testing.assert_close(after.state, before.state)
        for row, seed in enumerate(seeds):
            # One third of a turn moves the channels round, which way the seed says.
            rolled = before.images["top"][row].roll(shift.draw(seed).hue_sign, -1)
            assert torch.equal(after.images["top"][row], rolled)
            torch.testing.assert_close(after.points[row, ..., :3], before.points[row, ..., :3])
    assert torch.equal(alone.reset([5]).images["top"][0], other.images["top"][1])


@pytest.mark.parametrize(
    "wrong", [{}, {"camera_deg": -1.0}, {"hue_deg": 181.0}, {"brightness": 1.0}, {"light_stops": math.inf}]
)
def test_numbers_that_can_not_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="view_shift"):
        ViewShift(**wrong).validate()


def test_refusals_say_what_an_env_can_do() -> None:
    with pytest.raises(EnvError, match="images, depth or points"):
        ViewShiftedSteps(PointReach(PointReachConfig(), num_envs=1), ViewShift(hue_deg=9.0))
    with pytest.raises(EnvError, match="hue_deg and brightness alone"):
        make_env(PointReachConfig(image_size=8, view_shift=ViewShift(camera_deg=5.0)), num_envs=1, history=1)
    with pytest.raises(ConfigError, match="camera_deg"):
        with_strength("camera", 1.0)
    assert with_strength("hue_deg", 0.0) is None
    assert with_strength("camera_m", 0.1, seed=3) == ViewShift(camera_m=0.1, seed=3)


_SCENE = """
import math, sys
import numpy as np, torch
torch.set_num_threads(1)
from robot_rl.algorithms.view_shift import ViewShift
from robot_rl.deploy.point_cloud import points_of_depth
from robot_rl.data.same_cameras import require_same_cameras, rotation_between
from robot_rl.envs.maniskill import ManiSkillConfig, make_env
from robot_rl.envs.maniskill_views import describe_cameras
from robot_rl.stages.evaluate import check_spec

def env(mode="rgb+depth", **shift):
    wanted = ViewShift(**shift) if shift else None
    options = {"obs_mode": mode, "image_size": 32, "vulkan_icd": sys.argv[1], "view_shift": wanted}
    return make_env(ManiSkillConfig("PushCube-v1", **options), num_envs=1, history=1)

def picture(seen):
    return seen.images["base_camera"][0, 0].float()

def true_camera(built):
    return describe_cameras(built._env._inner._envs[0])["base_camera"]

plain = env()
first, again = plain.reset([3]), plain.reset([4])
camera = plain.spec.cameras["base_camera"]

# Turned by 10 degrees and moved by 5 cm, as asked, each episode another way; the spec is still that of the task.
moved = env(camera_deg=10.0, camera_m=0.05)
assert moved.spec.cameras == plain.spec.cameras
assert moved.protocol()["view_shift"]["camera_deg"] == 10.0 and "view_shift" not in plain.protocol()
check_spec(plain.spec, moved.spec, where="policy")
poses = []
for seed in (3, 4):
    seen = moved.reset([seed])
    poses.append(true_camera(moved))
    assert abs(rotation_between(camera, poses[-1]) - math.radians(10)) < 2e-3, rotation_between(camera, poses[-1])
    assert abs(math.dist(camera.position_m, poses[-1].position_m) - 0.05) < 1e-3
    assert (picture(seen) - picture(first)).abs().mean() > 2
assert poses[0] != poses[1]
# The world was not moved: the depths, put where the camera truly is, are the cloud that the task's own camera sees.
truth = points_of_depth(seen.depth["base_camera"][:, 0], poses[1])[0]
known = points_of_depth(again.depth["base_camera"][:, 0], camera)[0]
truth, known = (p[(p != 0).any(-1) & (p[:, 2].abs() < 0.02) & (p.norm(dim=-1) < 1.5)] for p in (truth, known))
assert len(truth) > 50 and len(known) > 50
assert truth[:, 2].abs().median() < 5e-3, "the table is where it was"
# What the policy is given is computed with the old pose: clouds equal those of the depths with the spec's camera.
cloud_env = env("pointcloud", camera_deg=10.0, camera_m=0.05)
cloud = cloud_env.reset([4]).points[0, 0]
stale = points_of_depth(seen.depth["base_camera"][:, 0], camera)[0]
gap = (cloud[..., :3] - stale).norm(dim=-1)
is_there = (stale != 0).any(-1) & (seen.depth["base_camera"][0, 0].flatten() < 2)
is_both = is_there & (cloud[..., :3] != 0).any(-1)  # ManiSkill drops surfaces that belong to no actor
assert is_both.float().mean() > 0.3, is_both.float().mean()
# Of about 700 pixels SwiftShader gives a few another position than their depth says.
worst = gap[is_both].quantile(0.98)
assert worst < 5e-3, worst

# Light: brighter or darker by the sign of the draw, and back to the same every time.
lit = env(light_stops=1.0)
means = {}
for seed in range(8):
    sign = ViewShift(light_stops=1.0).draw(seed).light_sign
    means.setdefault(sign, []).append(float(picture(lit.reset([seed])).mean() - picture(plain.reset([seed])).mean()))
assert min(means[1]) > 5 and max(means[-1]) < -5, means
assert torch.equal(picture(lit.reset([3])), picture(lit.reset([3])))
turned = env(light_deg=60.0)
assert (picture(turned.reset([3])) - picture(first)).abs().mean() > 1
assert torch.equal(turned.reset([3]).depth["base_camera"], first.depth["base_camera"])
print("FINE")
"""


@pytest.mark.slow
def test_cameras_and_lights_of_a_rendered_scene_move_as_asked() -> None:
    done = run_rendered(_SCENE, timeout_s=900)
    assert "FINE" in done.stdout, done.stderr[-3000:]
