"""Chunk execution with chunks whose actions say what they are: 100 * step of the question + index."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robot_rl.deploy.chunk_weights import continuation_weights, ensembled
from robot_rl.deploy.execution import (
    ChunkPlayer,
    ChunkRule,
    Execution,
    delay_steps,
    question_interval,
)
from robot_rl.errors import ConfigError

H, TA = 8, 4
HELD = None


def play(
    kind: Execution, *, delay: int, steps: int, rule: ChunkRule | None = None, discrete: tuple[int, ...] = ()
) -> list:
    """What is played; None where the robot holds."""
    rule = ChunkRule() if rule is None else rule
    interval = question_interval(kind, rule, delay=delay, horizon=H, execute=TA)
    player = ChunkPlayer(kind, rule, interval=interval, horizon=H, discrete=discrete)
    played = []
    for step in range(steps):
        player.collect(step)
        if player.wants(step):
            chunk = np.float32(100 * step + np.arange(H))[:, None] + np.zeros((1, 1 + len(discrete)), np.float32)
            player.ask(step, chunk, delay=delay)
        action = player.action(step)
        played.append(None if action is None else float(action[0]) if not discrete else tuple(action.tolist()))
    assert player.counts.steps == steps
    assert player.counts.held == played.count(None)
    return played


@pytest.mark.parametrize("kind", [Execution.sync, Execution.naive, Execution.asynchronous, Execution.rtc])
def test_without_delay_all_are_the_same(kind: Execution) -> None:
    assert play(kind, delay=0, steps=9) == [0, 1, 2, 3, 400, 401, 402, 403, 800]


def test_sync_holds_while_it_waits() -> None:
    """The second question is at step 4 and answered at 6; the third at 10."""
    assert play(Execution.sync, delay=2, steps=13) == [0, 1, 2, 3, HELD, HELD, 400, 401, 402, 403, HELD, HELD, 1000]


def test_naive_goes_on_with_the_old_chunk_and_then_from_the_beginning_of_the_new_one() -> None:
    assert play(Execution.naive, delay=2, steps=12) == [0, 1, 2, 3, 4, 5, 400, 401, 402, 403, 800, 801]


def test_async_drops_what_has_passed() -> None:
    assert play(Execution.asynchronous, delay=2, steps=12) == [0, 1, 2, 3, 4, 5, 402, 403, 404, 405, 802, 803]
    assert play(Execution.rtc, delay=2, steps=12) == [0, 1, 2, 3, 4, 5, 402, 403, 404, 405, 802, 803]


def test_every_and_the_horizon_bound_the_questions() -> None:
    assert play(Execution.asynchronous, delay=1, steps=6, rule=ChunkRule(every=2)) == [0, 1, 2, 201, 202, 401]
    # Ta would be 4, but a chunk of 8 that comes 5 late ends 3 steps after: sooner than the next question.
    with pytest.raises(ConfigError, match="at most 3 steps between two questions"):
        play(Execution.asynchronous, delay=5, steps=1)
    assert play(Execution.asynchronous, delay=4, steps=10)[6:] == [6, 7, 404, 405]
    with pytest.raises(ConfigError, match="at most 6 steps"):
        play(Execution.rtc, delay=2, steps=1, rule=ChunkRule(every=7))
    with pytest.raises(ConfigError, match="at most 8 steps"):
        play(Execution.sync, delay=20, steps=1, rule=ChunkRule(every=9))
    assert play(Execution.sync, delay=20, steps=26)[23:] == [HELD, 400, 401]


def test_blend_moves_from_the_old_chunk_to_the_new_one_but_not_the_gripper() -> None:
    played = play(Execution.asynchronous, delay=2, steps=9, rule=ChunkRule(blend_steps=3), discrete=(1,))
    assert played[:6] == [(i, i) for i in range(6)]
    assert played[6] == pytest.approx((0.75 * 6 + 0.25 * 402, 402))
    assert played[7] == pytest.approx((0.5 * 7 + 0.5 * 403, 403))
    assert played[8] == (404, 404)  # the old chunk is over
    with pytest.raises(ConfigError, match="execution=async or rtc"):
        play(Execution.sync, delay=0, steps=1, rule=ChunkRule(blend_steps=1))


def test_ensemble_is_the_weighted_mean_of_all_chunks_that_cover_a_step() -> None:
    """ACT's formula written out: at step t without delay, chunks asked at max(0, t - 7) .. t, the oldest first."""
    for delay, every in ((0, 1), (2, 2), (1, 1)):
        played = play(Execution.ensemble, delay=delay, steps=25, rule=ChunkRule(decay=0.3))
        for t, got in enumerate(played):
            asked = [s for s in range(0, t + 1, every) if (s + delay <= t or s == 0) and t - s < H]
            weights = [math.exp(-0.3 * i) for i in range(len(asked))]
            wanted = sum(w * (100 * s + t - s) for w, s in zip(weights, asked, strict=True)) / sum(weights)
            assert got == pytest.approx(wanted, rel=1e-6)
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    average, total = np.zeros(3), 0.0
    for i, row in enumerate(rows):  # the running form of the same mean
        weight = math.exp(-0.01 * i)
        average, total = (average * total + weight * row) / (total + weight), total + weight
    np.testing.assert_allclose(ensembled(rows, 0.01), average, rtol=1e-6)


def test_late_answers_longer_than_said_are_held_and_counted() -> None:
    player = ChunkPlayer(Execution.asynchronous, ChunkRule(), interval=4, horizon=H)
    chunk = np.arange(H, dtype=np.float32)[:, None]
    player.ask(0, chunk, delay=3)
    played = []
    for step in range(14):
        player.collect(step)
        if player.wants(step):
            player.ask(step, 100 * step + chunk, delay=6)
        action = player.action(step)
        played.append(None if action is None else float(action[0]))
    assert played == [*range(8), HELD, HELD, 406, 407, HELD, HELD]
    assert (player.counts.questions, player.counts.held) == (3, 4)


def test_a_new_episode_forgets_answers_that_are_on_their_way() -> None:
    player = ChunkPlayer(Execution.asynchronous, ChunkRule(), interval=4, horizon=H)
    chunk = np.arange(H, dtype=np.float32)[:, None]
    player.ask(0, chunk, delay=2)
    player.ask(4, 100 + chunk, delay=2)
    player.begin()
    assert player.wants(0)
    assert player.rest(0) is None
    player.ask(0, 500 + chunk, delay=2)
    assert [float(player.action(step)[0]) for step in range(3)] == [500, 501, 502]  # type: ignore[index]


def test_rest_of_the_chunk_that_is_played() -> None:
    player = ChunkPlayer(Execution.rtc, ChunkRule(), interval=4, horizon=H)
    player.ask(0, np.arange(H, dtype=np.float32)[:, None], delay=0)
    rest = player.rest(5)
    assert rest is not None
    assert (rest[0][:, 0].tolist(), rest[1]) == ([5, 6, 7, 7, 7, 7, 7, 7], 3)
    assert player.rest(8) is None


@pytest.mark.parametrize("kind", [Execution.asynchronous, Execution.rtc])
def test_rest_of_a_blend_is_what_will_be_played(kind: Execution) -> None:
    """Asked at 4, there at 6, blended over three steps, of which the old chunk has two; the gripper (element 1) changes at once."""
    player = ChunkPlayer(kind, ChunkRule(blend_steps=3), interval=4, horizon=H, discrete=(1,))
    chunk = np.arange(H, dtype=np.float32)[:, None] + np.zeros(2, np.float32)
    for step, delay in ((0, 0), (4, 2)):
        player.ask(step, 100 * step + chunk, delay=delay)
    for step in range(6):
        player.action(step)
    player.collect(6)
    rest = player.rest(6)
    assert rest is not None
    assert rest[0].dtype == np.float32
    assert rest[0][:, 0].tolist() == [0.75 * 6 + 0.25 * 402, 0.5 * 7 + 0.5 * 403, 404, 405, 406, 407, 407, 407]
    assert (rest[0][:, 1].tolist(), rest[1]) == ([402, 403, 404, 405, 406, 407, 407, 407], 6)
    told = player.continuation(7, expected=2)
    assert told is not None
    assert told[0][:2, 0].tolist() == [0.5 * 7 + 0.5 * 403, 404]
    played = [player.action(step) for step in range(6, 12)]
    np.testing.assert_array_equal(np.stack(played), rest[0][:6])  # type: ignore[arg-type]


def test_continuation_weights_by_hand() -> None:
    """Equation 5 of arXiv 2506.07339 with H = 8, d = 2, s = 3: five actions are planned."""
    weights = continuation_weights(committed=2, planned=5, horizon=8)
    soft = [c * (math.e**c - 1) / (math.e - 1) for c in (3 / 4, 2 / 4, 1 / 4)]
    np.testing.assert_allclose(weights, [1, 1, *soft, 0, 0, 0], rtol=1e-12)
    np.testing.assert_array_equal(continuation_weights(committed=3, planned=3, horizon=4), [1, 1, 1, 0])
    assert continuation_weights(committed=0, planned=4, horizon=4)[0] < 1


@pytest.mark.parametrize(
    ("ms", "hz", "steps"), [(0, 20, 0), (1, 20, 1), (50, 20, 1), (50.1, 20, 2), (100, 20, 2), (200, 10, 2)]
)
def test_delay_in_steps(ms: float, hz: float, steps: int) -> None:
    assert delay_steps(float(ms), float(hz)) == steps


@pytest.mark.parametrize(
    "rule", [ChunkRule(every=0), ChunkRule(blend_steps=-1), ChunkRule(decay=-1.0), ChunkRule(guidance=0.0)]
)
def test_numbers_out_of_range(rule: ChunkRule) -> None:
    with pytest.raises(ConfigError, match="chunks"):
        question_interval(Execution.asynchronous, rule, delay=0, horizon=H, execute=TA)


def test_an_ensemble_behind_a_hold_averages_nothing_from_before_it() -> None:
    """Absolute actions of 0.01 a step; no answers in steps 10 to 27, so that it holds at 0.18 from step 19 on."""
    player = ChunkPlayer(Execution.ensemble, ChunkRule(), interval=1, horizon=32, usable=10)
    played = []
    for step in range(30):
        if step < 10 or step >= 28:
            player.asked(step)
            player.take(step, np.float32(0.01 * (step if step < 10 else step - 9) + 0.01 * np.arange(32))[:, None])
        action = player.action(step)
        played.append(None if action is None else float(action[0]))
    assert played[19:28] == [HELD] * 9
    assert played[28:] == pytest.approx([0.19, 0.20])


@pytest.mark.parametrize(("rule", "kind"), [(ChunkRule(decay=0.2), "ensemble"), (ChunkRule(guidance=2.0), "rtc")])
def test_numbers_of_another_execution_are_refused(rule: ChunkRule, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"expected execution={kind}, got async"):
        question_interval(Execution.asynchronous, rule, delay=0, horizon=H, execute=TA)
    question_interval(Execution(kind), rule, delay=0, horizon=H, execute=TA)
