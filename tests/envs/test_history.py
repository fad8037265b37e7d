"""HistoryEnv on a hand-made StepEnv whose every number is known: frame = 100 * seed + step, episode lengths by seed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from robot_rl.contracts import VectorEnv
from robot_rl.envs.history import Frame, HistoryEnv
from robot_rl.errors import EnvError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import ActionChunk

SPEC = EnvSpec(
    env_id="Counter",
    observation={"proprio": ArraySpec("proprio", (1,)), "image/top": ArraySpec("image/top", (1, 1, 3), dtype="uint8")},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "count"),
    joint_names=("j",),
    robot="counter",
    control_hz=4.0,
    max_episode_steps=6,
)
LIMIT = 6


class Counter:
    """Frame 100 * seed + step; reward = step + action[0]; seed s: success at step s % 10, fail at step s // 10 % 10."""

    def __init__(self, num_envs: int) -> None:
        self.spec, self.num_envs, self.device = SPEC, num_envs, torch.device("cpu")
        self.seed, self.count = np.zeros(num_envs, dtype=np.int64), np.zeros(num_envs, dtype=np.int64)
        self.proprio = torch.zeros(num_envs, 1)
        self.calls: list[np.ndarray] = []
        self.closed = False

    def _frame(self, reward: torch.Tensor) -> Frame:
        # One buffer for ever, as simulators do it: HistoryEnv must not keep views of it.
        self.proprio[:, 0] = torch.from_numpy(100.0 * self.seed + self.count)
        image = torch.from_numpy(self.count.astype(np.uint8))[:, None, None, None].expand(-1, 1, 1, 3)
        return Frame(
            observation={"proprio": self.proprio, "image/top": image},
            reward=reward,
            success=torch.from_numpy(self.count == self.seed % 10),
            fail=torch.from_numpy((self.count == self.seed // 10 % 10) & (self.count > 0)),
        )

    def reset_envs(self, mask: np.ndarray, seeds: np.ndarray) -> Frame:
        self.seed[mask], self.count[mask] = seeds[mask], 0
        return self._frame(torch.zeros(self.num_envs))

    def step_envs(self, action: torch.Tensor, active: np.ndarray) -> Frame:
        self.calls.append(active.copy())
        self.count += 1  # a batched simulator moves all envs
        self.count[~active] -= 1
        return self._frame(torch.from_numpy(self.count).float() + action[:, 0])

    def protocol(self) -> dict:
        return {"task": "Counter"}

    def close(self) -> None:
        self.closed = True


def make(num_envs: int, *, history: int = 1, on_success: bool = True, limit: int | None = None) -> HistoryEnv:
    return HistoryEnv(Counter(num_envs), history=history, terminate_on_success=on_success, max_episode_steps=limit)


def chunk(num_envs: int, length: int, *, execute: int | None = None, first: float = 0.0) -> ActionChunk:
    actions = torch.zeros(num_envs, length, 2)
    actions[..., 0] = first
    return ActionChunk(actions=actions, execute=execute or length)


def test_implements_the_contract():
    env = make(2)
    assert isinstance(env, VectorEnv)
    assert env.protocol() == {
        "task": "Counter",
        "terminate_on_success": True,
        "max_episode_steps": LIMIT,
        "history": 1,
        "auto_reset": "at the end of the chunk in which the episode ended; the rest of that chunk is dropped",
    }
    env.close()
    assert env._env.closed


def test_staggered_ends_inside_a_chunk():
    # Success at step 2, fail at step 3 (success at 9: never), time limit at 6.
    env = make(3, history=2)
    env.reset([2, 39, 9, 4, 5])
    result = env.step(chunk(3, 4, first=0.5))
    assert result.executed.tolist() == [2, 3, 4]
    assert result.mask.tolist() == [[True, True, False, False], [True, True, True, False], [True] * 4]
    assert result.rewards.tolist() == [[1.5, 2.5, 0, 0], [1.5, 2.5, 3.5, 0], [1.5, 2.5, 3.5, 4.5]]
    assert result.terminated.tolist() == [True, True, False]
    assert result.truncated.tolist() == [False, False, False]
    assert result.success.tolist() == [True, False, False]
    assert result.success_at_end.tolist() == [True, False, False]
    assert result.step_success.tolist() == [[False, True, False, False], [False] * 4, [False] * 4]
    # The end of the old episode, and the first frame of the next one, repeated.
    assert result.final_observation.proprio[..., 0].tolist() == [[201, 202], [3902, 3903], [903, 904]]
    assert result.observation.proprio[..., 0].tolist() == [[400, 400], [500, 500], [903, 904]]
    assert result.observation.time.tolist() == [[0, 0], [0, 0], [0.75, 1.0]]
    assert result.final_observation.time.tolist() == [[0.25, 0.5], [0.5, 0.75], [0.75, 1.0]]
    assert env.episode_seeds.tolist() == [4, 5, 9]
    frames = result.frames["proprio"][..., 0]
    assert frames[0, :2].tolist() == [201, 202]
    assert frames[1, :3].tolist() == [3901, 3902, 3903]
    assert frames[2].tolist() == [901, 902, 903, 904]


def test_history_fills_up_frame_by_frame():
    env = make(1, history=3)
    first = env.reset([9])
    assert first.proprio[0, :, 0].tolist() == [900, 900, 900]
    assert first.images["top"].shape == (1, 3, 1, 1, 3)
    assert first.images["top"].dtype == torch.uint8
    assert env.step(chunk(1, 1)).observation.proprio[0, :, 0].tolist() == [900, 900, 901]
    result = env.step(chunk(1, 2))
    assert result.observation.proprio[0, :, 0].tolist() == [901, 902, 903]
    assert result.observation.images["top"][0, :, 0, 0, 0].tolist() == [1, 2, 3]
    assert result.observation.time.tolist() == [[0.25, 0.5, 0.75]]
    assert result.observation.time.dtype == torch.float64


def test_termination_beats_truncation_at_the_same_step():
    env = make(3)
    env.reset([6, 69, 9])  # success at the limit, fail at the limit, neither
    result = env.step(chunk(3, 6))
    assert result.terminated.tolist() == [True, True, False]
    assert result.truncated.tolist() == [False, False, True]
    assert result.executed.tolist() == [6, 6, 6]


def test_success_once_and_at_the_end():
    env = make(1, on_success=False)
    env.reset([2])
    result = env.step(chunk(1, 6))
    assert (result.success.item(), result.success_at_end.item()) == (True, False)
    assert (result.terminated.item(), result.truncated.item()) == (False, True)
    env.reset([6])
    result = env.step(chunk(1, 6))
    assert (result.success.item(), result.success_at_end.item()) == (True, True)
    assert (result.terminated.item(), result.truncated.item()) == (False, True)


def test_success_at_reset_is_reported():
    env = make(2)
    env.reset([10, 3, 20])
    assert env.success_at_reset.tolist() == [True, False]
    env.step(chunk(2, 1))  # seed 10 fails at step 1; seed 20 starts there, solved
    assert env.episode_seeds.tolist() == [20, 3]
    assert env.success_at_reset.tolist() == [True, False]
    env.step(chunk(2, 3))
    assert env.success_at_reset.tolist() == [False, False]


def test_idle_when_the_seeds_run_out():
    env = make(3)
    env.reset([1, 9])
    assert env.episode_seeds.tolist() == [1, 9, -1]
    result = env.step(chunk(3, 3))
    assert env.episode_seeds.tolist() == [-1, 9, -1]
    assert result.executed.tolist() == [1, 3, 0]
    assert [call.tolist() for call in env._env.calls] == [[True, True, False]] + 2 * [[False, True, False]]
    assert result.observation.proprio[0, 0, 0].item() == 101  # an idle env keeps its last frame
    result = env.step(chunk(3, 3))
    assert result.truncated.tolist() == [False, True, False]
    result = env.step(chunk(3, 2))
    assert result.executed.tolist() == [0, 0, 0]
    assert not result.mask.any()
    assert result.frames["proprio"].shape == (3, 2, 1)
    assert not (result.terminated | result.truncated | result.success | result.success_at_end).any()
    assert len(env._env.calls) == 6


def play(num_envs: int, seeds: list[int]) -> dict[int, tuple]:
    """Per episode: (executed steps, rewards, final frame, terminated, truncated)."""
    env = make(num_envs, history=2)
    env.reset(iter(seeds))
    played: dict[int, tuple] = {}
    rewards: dict[int, list[float]] = {seed: [] for seed in seeds}
    while (env.episode_seeds >= 0).any():
        before = env.episode_seeds
        result = env.step(chunk(num_envs, 4, first=0.25))
        for row, seed in enumerate(before.tolist()):
            if seed < 0:
                continue
            rewards[seed] += result.rewards[row][result.mask[row]].tolist()
            if result.terminated[row] or result.truncated[row]:
                end = (result.terminated[row].item(), result.truncated[row].item())
                played[seed] = (rewards[seed], result.final_observation.proprio[row, :, 0].tolist(), *end)
    return played


def test_episodes_do_not_depend_on_the_number_of_envs():
    seeds = [2, 39, 9, 4, 5, 1, 18]
    alone = play(1, seeds)
    assert sorted(alone) == sorted(seeds)
    assert alone[4] == ([1.25, 2.25, 3.25, 4.25], [403, 404], True, False)
    assert alone[9] == ([1.25, 2.25, 3.25, 4.25, 5.25, 6.25], [905, 906], False, True)
    assert alone[18] == ([1.25], [1800, 1801], True, False)
    assert play(3, seeds) == alone
    assert play(4, seeds) == alone


def test_results_are_copies():
    env = make(2, history=2)
    first = env.reset([9, 8])
    kept = first.proprio.clone()
    result = env.step(chunk(2, 2))
    seen = result.observation.proprio.clone()
    env._env.proprio.fill_(-1)
    first.proprio.fill_(-7)
    result.final_observation.proprio.fill_(-7)
    result.frames["proprio"].fill_(-7)
    env.episode_seeds[0] = 55
    after = env.step(chunk(2, 1))
    assert kept[..., 0].tolist() == [[900, 900], [800, 800]]
    assert torch.equal(result.observation.proprio, seen)
    assert after.observation.proprio[..., 0].tolist() == [[902, 903], [802, 803]]
    assert env.episode_seeds.tolist() == [9, 8]


def test_a_second_reset_starts_anew():
    env = make(2, history=2)
    env.reset([9, 8])
    env.step(chunk(2, 5))
    observation = env.reset(itertools.count(30))
    assert observation.proprio[..., 0].tolist() == [[3000, 3000], [3100, 3100]]
    result = env.step(chunk(2, 2))
    assert result.observation.time[0].tolist() == [0.25, 0.5]
    assert result.executed.tolist() == [2, 1]  # seed 30 fails at 3, seed 31 succeeds at 1


def test_time_limit_of_the_config_wins():
    env = make(1, limit=3)
    assert env.spec == replace(SPEC, max_episode_steps=3)
    env.reset([9])
    assert env.step(chunk(1, 5)).executed.item() == 3


def test_only_the_executed_part_is_played():
    env = make(1)
    env.reset([9])
    long = chunk(1, 5, execute=2)
    long.actions[:, 2:] = torch.nan  # never played, so never looked at
    assert env.step(long).executed.item() == 2


def test_step_before_reset():
    with pytest.raises(EnvError, match="step before reset"):
        make(1).step(chunk(1, 1))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 2)])
def test_wrong_chunk_names_the_expected_shape(shape):
    env = make(2)
    env.reset([1, 2])
    with pytest.raises(EnvError, match=r"N=2, Tp, A=2.*got shape \(" + str(shape[0])):
        env.step(ActionChunk(actions=torch.zeros(shape), execute=1))


def test_execute_beyond_the_chunk():
    env = make(1)
    env.reset([1])
    with pytest.raises(EnvError, match="execute=4"):
        env.step(ActionChunk(actions=torch.zeros(1, 3, 2), execute=4))


def test_actions_that_are_no_numbers():
    env = make(2)
    env.reset([9, 9])
    bad = chunk(2, 3)
    bad.actions[1, 2, 1] = torch.nan
    with pytest.raises(EnvError, match=r"env 1, action 2 of the chunk, element 1: expected a finite number, got nan"):
        env.step(bad)
    assert env._env.calls == []  # nothing was played
    env.reset([9])
    env.step(bad)  # env 1 is idle: its action does not matter


def test_seeds_are_checked():
    with pytest.raises(EnvError, match="at least one seed"):
        make(1).reset([])
    with pytest.raises(EnvError, match="seeds of 0 or more, got -3"):
        make(1).reset([-3])


def test_options_are_checked():
    with pytest.raises(EnvError, match="history=0"):
        make(1, history=0)
    with pytest.raises(EnvError, match="max_episode_steps=0"):
        make(1, limit=0)
