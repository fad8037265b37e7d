"""Chunks by time, ages, histories: hand numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from small_robot import small_card

from robot_rl.deploy.chunking import AgeCheck, ChunkFollower, ObservationHistory
from robot_rl.errors import DataError, DeployError
from robot_rl.hardware.mock_robot import MockRobotConfig, mock_spec
from robot_rl.types import Reading


def chunk(first: float, length: int = 8) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.float32)[:, None]


def due(follower: ChunkFollower, now_s: float) -> float | None:
    found = follower.due(now_s)
    return None if found is None else float(found.action[0])


def test_actions_are_due_by_time_and_the_last_one_is_not_played_again() -> None:
    """Tp 8, Ta 4, 0.1 s, and 0.2 s grace: two more actions, then nothing for ever."""
    follower = ChunkFollower(period_s=0.1, execute=4, late_s=0.2)
    assert due(follower, 10.0) is None
    assert follower.take(chunk(100), request=1, start_s=10.0, now_s=10.0)
    times = [9.95, 10.0, 10.05, 10.1, 10.39, 10.5, 10.59, 10.61, 11.0, 99.0]
    assert [due(follower, t) for t in times] == [None, 100, 100, 101, 103, 105, 105, None, None, None]
    found = follower.due(10.3)
    assert found is not None
    assert (found.request, found.index) == (1, 3)


def test_skipped_slots_do_not_delay_the_chunk() -> None:
    """Five slots at 0.1 s of which two are skipped: actions 0, 1, 4, not 0, 1, 2."""
    follower = ChunkFollower(period_s=0.1, execute=8, late_s=0.0)
    follower.take(chunk(0), request=1, start_s=5.0, now_s=5.0)
    assert [due(follower, 5.0 + 0.1 * k) for k in (0, 1, 4)] == [0, 1, 4]


@pytest.mark.parametrize("start_s", [0.0, 1234.567, 1e6 + 0.1])
def test_rounding_never_loses_an_action(start_s: float) -> None:
    follower = ChunkFollower(period_s=1 / 30, execute=8, late_s=0.0)
    follower.take(chunk(0), request=1, start_s=start_s, now_s=start_s)
    assert [due(follower, start_s + k / 30) for k in range(9)] == [0, 1, 2, 3, 4, 5, 6, 7, None]


def test_a_chunk_may_not_be_followed_beyond_its_prediction() -> None:
    follower = ChunkFollower(period_s=0.1, execute=4, late_s=10.0)
    follower.take(chunk(0), request=1, start_s=0.0, now_s=0.0)
    assert due(follower, 0.75) == 7
    assert due(follower, 0.85) is None


def test_hand_over_goes_to_the_action_that_is_due_in_the_new_chunk() -> None:
    """Asked at 0.4 s, answered at 0.6 s: the new chunk is entered at its third action."""
    follower = ChunkFollower(period_s=0.1, execute=4, late_s=0.4)
    follower.take(chunk(0), request=1, start_s=0.0, now_s=0.0)
    assert due(follower, 0.5) == 5
    assert follower.take(chunk(100), request=2, start_s=0.4, now_s=0.6)
    assert due(follower, 0.6) == 102


def test_late_old_and_foreign_answers_are_dropped() -> None:
    follower = ChunkFollower(period_s=0.1, execute=4, late_s=0.0)
    assert follower.take(chunk(0), request=5, start_s=0.0, now_s=0.0)
    assert not follower.take(chunk(50), request=5, start_s=0.1, now_s=0.1)  # a second answer of one number
    assert not follower.take(chunk(50), request=4, start_s=0.1, now_s=0.1)  # older than what is followed
    assert not follower.take(chunk(50), request=6, start_s=0.1, now_s=2.1)  # 2 s late: nothing of it is due
    assert due(follower, 0.1) == 1
    follower.forget(next_request=7)
    assert due(follower, 0.1) is None
    assert not follower.take(chunk(50), request=6, start_s=0.1, now_s=0.1)  # asked in the episode before
    assert follower.take(chunk(70), request=7, start_s=0.1, now_s=0.1)
    assert (due(follower, 0.2), follower.dropped) == (71, 4)


def reading(**stamps: float) -> Reading:
    return Reading(frames={"proprio": np.zeros(2, np.float32)}, stamps=stamps, position=np.zeros(2))


@pytest.mark.parametrize(
    ("stamps", "stream", "age_s", "is_stale"),
    [
        ({"joints": 99.95, "wrist": 99.80}, "joints", 0.05, False),  # half of 0.1 against 0.4 of 0.5
        ({"joints": 99.95, "wrist": 99.60}, "wrist", 0.40, False),
        ({"joints": 99.89, "wrist": 99.90}, "joints", 0.11, True),
        ({"joints": 100.0, "wrist": 99.49}, "wrist", 0.51, True),
        ({"joints": 100.0}, "wrist", math.inf, True),
        ({"joints": 100.001, "wrist": 100.0}, "wrist", 0.0, False),  # rounding between clocks
        ({"joints": 100.1, "wrist": 100.0}, "joints", -0.1, True),  # a stamp of the future
        ({"joints": 110.0, "wrist": 90.0}, "joints", -10.0, True),
    ],
)
def test_the_worst_stream_decides(stamps: dict[str, float], stream: str, age_s: float, is_stale: bool) -> None:
    verdict = AgeCheck({"joints": 0.1, "wrist": 0.5}).judge(reading(**stamps), 100.0)
    assert (verdict.stream, verdict.is_stale) == (stream, is_stale)
    assert verdict.age_s == pytest.approx(age_s)


def test_a_stamp_that_is_no_number_is_stale() -> None:
    assert AgeCheck({"joints": 0.1}).judge(reading(joints=math.nan), 100.0).is_stale
    assert not AgeCheck({}).judge(reading(), 100.0).is_stale


def frames(value: float) -> Reading:
    found = {"proprio": np.full(2, value, np.float32), "image/wrist": np.full((4, 6, 3), int(value), np.uint8)}
    return Reading(frames=found, stamps={}, position=np.zeros(2))


def history(keys: tuple[str, ...], length: int = 3) -> ObservationHistory:
    spec = mock_spec(small_card(), MockRobotConfig(cameras={"wrist": (4, 6)}))
    return ObservationHistory(spec, keys=keys, history=length)


def test_the_first_frame_fills_the_past_and_later_ones_push_it_out() -> None:
    made = history(("proprio", "image/wrist"))
    assert not made.is_filled
    seen = []
    for value in (1.0, 2.0, 3.0, 4.0):
        made.push(frames(value))
        observation = made.observation()
        assert observation.proprio.shape == (1, 3, 2)
        assert observation.images["wrist"].shape == (1, 3, 4, 6, 3)
        assert observation.images["wrist"][0, :, 0, 0, 0].tolist() == observation.proprio[0, :, 0].tolist()
        seen.append(observation.proprio[0, :, 0].tolist())
    assert seen == [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4]]
    made.forget()
    made.push(frames(9.0))
    assert made.observation().proprio[0, :, 0].tolist() == [9, 9, 9]


def test_a_frame_is_copied() -> None:
    made, given = history(("proprio",), 1), frames(1.0)
    made.push(given)
    given.frames["proprio"][:] = 5.0
    assert made.observation().proprio[0, 0].tolist() == [1, 1]


def test_a_policy_of_images_alone_has_an_empty_proprio() -> None:
    made = history(("image/wrist",), 2)
    made.push(frames(1.0))
    assert made.observation().proprio.shape == (1, 2, 0)


def test_frames_that_do_not_fit_are_refused() -> None:
    made, good = history(("proprio", "image/wrist")), frames(1.0)
    with pytest.raises(DeployError, match="image/wrist"):
        made.push(replace(good, frames={"proprio": good.frames["proprio"]}))
    with pytest.raises(DataError, match="shape"):
        made.push(replace(good, frames=good.frames | {"image/wrist": np.zeros((4, 5, 3), np.uint8)}))
    with pytest.raises(DataError, match="finite"):
        made.push(replace(good, frames=good.frames | {"proprio": np.array([0, np.nan], np.float32)}))
    assert not made.is_filled
