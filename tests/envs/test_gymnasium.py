"""Any Gymnasium env behind HistoryEnv: hand-made envs with known answers, and one real task of Gymnasium."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

import gymnasium
from gymnasium.spaces import Box, Dict, Discrete

from robot_rl.contracts import VectorEnv
from robot_rl.envs.gymnasium import GymnasiumConfig, Terminated, make_env
from robot_rl.envs.history import HistoryEnv
from robot_rl.errors import EnvError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk

ID = "robot_rl_test/Counter-v0"
GOAL = 3.0


class Counter(gymnasium.Env[Any, Any]):
    """x starts at the first random number of the seed and grows by the action; `terminated` from x >= GOAL on."""

    metadata = {"render_modes": [], "render_fps": 20}  # noqa: RUF012
    reward_range = (0.0, 1.0)

    def __init__(self, kind: str = "box", truncate_at: int = 0, action: str = "box") -> None:
        vector = Box(-10.0, 10.0, (1,), np.float64)
        image = Box(0, 255, (4, 5, 3), np.uint8)
        spaces = {
            "box": vector,
            "unbounded": Box(-np.inf, np.inf, (2, 1), np.float32),
            "dict": Dict({"x": vector, "steps": Box(0, 100, (2,), np.float32), "pixels": image}),
            "named": Dict({"proprio": vector, "state": vector}),
            "discrete": Dict({"proprio": Discrete(3)}),
            "pixels": image,
        }
        self.kind, self.truncate_at = kind, truncate_at
        self.observation_space = spaces[kind]
        self.action_space = Box(-1.0, 1.0, (1,), np.float32) if action == "box" else Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(0.0, 1.0)), 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x, self.steps = self.x + float(action[0]), self.steps + 1
        done = self.x >= GOAL
        return self._seen(), self.x, done, self.steps == self.truncate_at, {"solved": done, "lost": self.x < 0.0}

    def _seen(self) -> Any:
        vector, image = np.array([self.x]), np.full((4, 5, 3), self.steps, np.uint8)
        return {
            "box": vector,
            "unbounded": np.array([[self.x], [self.x]], np.float32),
            "dict": {"x": vector, "steps": np.array([self.steps, 7], np.float32), "pixels": image},
            "named": {"proprio": vector, "state": vector * 2},
            "discrete": {"proprio": 1},
            "pixels": image,
        }[self.kind]


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register(ID, entry_point=Counter, max_episode_steps=6)
    yield
    del gymnasium.registry[ID]


def make(*, num_envs: int = 1, history: int = 1, **fields: Any) -> HistoryEnv:
    return make_env(GymnasiumConfig(env_id=ID, **fields), num_envs=num_envs, history=history)


def start(seed: int) -> float:
    return float(gymnasium.utils.seeding.np_random(seed)[0].uniform(0.0, 1.0))


def chunk(value: float, *, steps: int, num_envs: int = 1) -> ActionChunk:
    return ActionChunk(torch.full((num_envs, steps, 1), value), execute=steps)


def test_hand_numbers_seeds_and_spec():
    env = make(num_envs=2)
    assert isinstance(env, VectorEnv)
    observation = env.reset([4, 9, 11])
    starts = torch.tensor([start(4), start(9)])
    torch.testing.assert_close(observation.state[:, 0, 0], starts)
    torch.testing.assert_close(observation.proprio, observation.state)
    # 5.0 is clipped to 1.0; the reward is the new x.
    result = env.step(chunk(5.0, steps=2, num_envs=2))
    torch.testing.assert_close(result.rewards, torch.stack([starts + 1, starts + 2], dim=1))
    assert EnvSpec.from_json(env.spec.to_json()) == env.spec
    assert (env.spec.control_hz, env.spec.max_episode_steps, env.spec.env_id) == (20.0, 6, ID)
    assert env.spec.action.low == (-1.0,)
    assert env.spec.observation["state"].high == (10.0,)
    assert env.protocol()["versions"]["gymnasium"]
    env.close()


def test_an_episode_depends_on_its_seed_alone():
    alone, beside = make(), make(num_envs=3)
    alone.reset([9])
    beside.reset([4, 9, 11])
    expected = alone.step(chunk(0.25, steps=3)).frames["state"][0]
    torch.testing.assert_close(
        beside.step(chunk(0.25, steps=3, num_envs=3)).frames["state"][1], expected, rtol=0, atol=0
    )


def test_the_time_limit_is_truncation_and_neither_success_nor_failure():
    for fields in ({}, {"success_key": "solved"}, {"terminated_is": Terminated.failure}):
        env = make(**fields)
        env.reset([4])
        result = env.step(chunk(0.0, steps=8))
        assert result.truncated.tolist() == [True]
        assert result.terminated.tolist() == [False]
        assert result.success.tolist() == [False]
        assert result.executed.tolist() == [6]


def test_a_longer_limit_replaces_the_registered_one():
    env = make(max_episode_steps=9)
    env.reset([4])
    assert env.step(chunk(0.0, steps=12)).executed.tolist() == [9]


@pytest.mark.parametrize(
    ("fields", "success"),
    [
        ({}, True),
        ({"terminated_is": Terminated.failure}, False),
        ({"success_key": "solved"}, True),
        ({"success_key": "lost"}, False),
    ],
)
def test_terminated_is_success_or_failure_as_told(fields, success):
    env = make(**fields)
    env.reset([4])
    result = env.step(chunk(1.0, steps=6))
    assert result.executed.item() == np.ceil(GOAL - start(4))
    assert result.terminated.item()
    assert not result.truncated.item()
    assert result.success.item() is success


def test_no_step_behind_the_end_of_the_environment():
    env = make(terminate_on_success=False)
    env.reset([4])
    with pytest.raises(EnvError, match="terminate_on_success=true"):
        env.step(chunk(1.0, steps=6))


def test_the_environments_own_truncation():
    env = make(options={"truncate_at": 6})
    env.reset([4])
    assert env.step(chunk(0.0, steps=6)).truncated.item()
    env = make(options={"truncate_at": 4})
    env.reset([4])
    with pytest.raises(EnvError, match=r"step 4.*no truncation before step 6"):
        env.step(chunk(0.0, steps=6))


def test_dict_observations_are_mapped_joined_and_typed():
    names = {"proprio": ["x"], "state": ["steps", "x"], "image/top": ["pixels"]}
    env = make(options={"kind": "dict"}, observation=names, history=2)
    env.reset([4])
    observation = env.step(chunk(0.5, steps=1)).observation
    x = start(4)
    torch.testing.assert_close(observation.state[0], torch.tensor([[0.0, 7.0, x], [1.0, 7.0, x + 0.5]]))
    torch.testing.assert_close(observation.proprio[0], torch.tensor([[x], [x + 0.5]]))
    assert observation.images["top"].shape == (1, 2, 4, 5, 3)
    assert observation.images["top"][0, 1].unique().tolist() == [1]
    assert env.spec.observation["state"].high == (100.0, 100.0, 10.0)
    assert make(options={"kind": "named"}).reset([4]).state[0, 0, 0] == pytest.approx(2 * x)


def test_unbounded_and_shaped_boxes_are_flat():
    env = make(options={"kind": "unbounded"})
    assert env.spec.observation["state"].shape == (2,)
    assert env.spec.observation["state"].low is None
    assert env.reset([4]).state.shape == (1, 1, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": {"action": "discrete"}}, "Box of floats as action space"),
        ({"options": {"kind": "discrete"}}, "Boxes of numbers"),
        ({"options": {"kind": "pixels"}}, 'observation for "proprio"'),
        ({"options": {"kind": "dict"}}, 'observation for "proprio"'),
        (
            {"options": {"kind": "dict"}, "observation": {"proprio": ["x"], "stat": ["x"]}},
            '"proprio", "state" or "image/<camera>"',
        ),
        ({"options": {"kind": "dict"}, "observation": {"proprio": ["xs"]}}, "Did you mean 'x'"),
        ({"options": {"kind": "dict"}, "observation": {"proprio": ["pixels"]}}, "Boxes of numbers"),
        ({"options": {"kind": "dict"}, "observation": {"proprio": ["x"], "image/a": ["x"]}}, "uint8 Box"),
        ({"options": {"kind": "dict"}, "observation": {"proprio": []}}, "at least one key"),
        ({"observation": {"proprio": ["x"]}}, "Dict observation to pick from"),
        ({"options": {"speed": 3}}, "options that the environment takes"),
    ],
)
def test_clear_errors(fields, message):
    with pytest.raises(EnvError) as error:
        make(**fields).reset([0])
    assert message in str(error.value)


def test_unknown_ids_and_missing_packages():
    for env_id in ("robot_rl_test/Countr-v0", "no_such_package:Thing-v0"):
        with pytest.raises(EnvError, match="an environment that Gymnasium knows"):
            make_env(GymnasiumConfig(env_id=env_id), num_envs=1, history=1)


def test_a_success_key_that_is_not_there():
    env = make(success_key="solvd")
    env.reset([4])
    with pytest.raises(EnvError, match="Did you mean 'solved'"):
        env.step(chunk(0.0, steps=1))


def test_no_time_limit_and_no_rate():
    gymnasium.register("robot_rl_test/Endless-v0", entry_point=Counter)
    with pytest.raises(EnvError, match="time limit"):
        make_env(GymnasiumConfig(env_id="robot_rl_test/Endless-v0"), num_envs=1, history=1)
    del gymnasium.registry["robot_rl_test/Endless-v0"]


def test_pendulum_plays_as_in_gymnasium():
    env = make_env(GymnasiumConfig(env_id="Pendulum-v1", terminated_is=Terminated.failure), num_envs=1, history=1)
    raw = gymnasium.make("Pendulum-v1")
    seen, _ = raw.reset(seed=3)
    observation = env.reset([3])
    np.testing.assert_array_equal(observation.state[0, 0].numpy(), seen)
    actions = torch.linspace(-2.0, 2.0, 20)[None, :, None]
    result = env.step(ActionChunk(actions, execute=20))
    for step in range(20):
        seen, reward, *_ = raw.step(actions[0, step].numpy())
        np.testing.assert_array_equal(result.frames["state"][0, step].numpy(), seen)
        assert result.rewards[0, step].item() == pytest.approx(float(reward), rel=1e-6)
    assert env.spec.max_episode_steps == 200
