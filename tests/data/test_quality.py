"""Every check of a dataset: silent on clean data, and on a planted fault it names the planted place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from robot_rl.data.quality import CHECKS, Finding, Limits, Severity, collapsed, delete_command, may_train
from robot_rl.data.quality_audit import Audit, Quality
from robot_rl.data.quality_motion import geodesic
from robot_rl.data.quality_outcome import windows_of
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

HZ, STEPS, EPISODES = 20.0, 60, 4
PROPRIO = ("tcp x", "tcp y", "tcp z", "elbow", "gripper width", "quat w", "quat x", "quat y", "quat z")
SPEC = EnvSpec(
    env_id="Quality-v1",
    observation={
        "proprio": ArraySpec("proprio", (9,), units=("m", "m", "m", "rad", "m", *("1",) * 4), meanings=PROPRIO),
        "image/front": ArraySpec("image/front", (24, 32, 3), "uint8"),
        "image/wrist": ArraySpec("image/wrist", (24, 32, 3), "uint8"),
    },
    action=ArraySpec(
        "action", (4,), low=(-1.0,) * 4, high=(1.0,) * 4, units=("1 = 0.05 m",) * 3 + ("1",),
        meanings=("move x", "move y", "move z", "gripper"),
    ),
    action_semantics=ActionSemantics(
        ActionKind.delta, DeltaReference.measured, "base", "none", "-1 closed .. 1 open", "delta"
    ),
    joint_names=(),
    robot="test arm",
    control_hz=HZ,
    max_episode_steps=100,
)  # fmt: skip


def clean(number: int, *, steps: int = STEPS, lag: int = 0, opens: float = 1.0) -> Episode:
    """Smooth random motion that follows the action `lag` steps later; the gripper closes half way."""
    rng = np.random.default_rng(number)
    action = np.zeros((steps, 4))
    t = np.arange(steps)[:, None]
    action[:, :3] = 0.5 * np.sin(t / rng.uniform(4, 9, 3) + rng.uniform(0, 6, 3)) + 0.05 * rng.standard_normal(
        (steps, 3)
    )
    action[:, 3] = np.where(np.arange(steps) < steps // 2, 1, -1)
    moved = np.roll(action[:, :3], lag, axis=0) * 0.05
    place = np.concatenate([np.zeros((1, 3)), np.cumsum(moved, axis=0)]) + rng.uniform(-0.1, 0.1, 3)
    width = np.zeros(steps + 1)
    for step in range(steps):
        goal = 0.04 if opens * action[step, 3] > 0 else 0.0
        width[step + 1] = width[step] + np.clip(goal - width[step], -0.01, 0.01)
    angle = np.linspace(0, 1, steps + 1)[:, None] + rng.uniform(0, 0.5)
    quat = Rotation.from_rotvec(np.concatenate([0.6 * angle, 0.64 * angle, 0.48 * angle], axis=1)).as_quat()[
        :, [3, 0, 1, 2]
    ]
    proprio = np.concatenate([place, angle, width[:, None], quat], axis=1).astype(np.float32)
    pictures = rng.integers(0, 256, (2, steps + 1, 24, 32, 3), dtype=np.uint8)
    frames = {"proprio": proprio, "image/front": pictures[0], "image/wrist": pictures[1]}
    success = np.arange(steps) == steps - 1
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=action.clip(-1, 1).astype(np.float32),
        reward=success.astype(np.float32),
        success=success,
        terminated=True,
        truncated=False,
        source=np.ones(steps, np.uint8),
        time=np.arange(steps) / HZ,
        metadata={"seed": number},
    )


def audit(episodes: Sequence[Episode], spec: EnvSpec = SPEC, limits: Limits | None = None) -> Quality:
    checks = Audit(spec, limits or Limits())
    for number, episode in enumerate(episodes):
        checks.add(number, episode)
    return checks.result()


def planted(number: int = 2, **changes: object) -> list[Episode]:
    """Clean episodes with changed fields in one."""
    episodes = [clean(i) for i in range(EPISODES)]
    episodes[number] = dataclasses.replace(episodes[number], **changes)  # type: ignore[arg-type]
    return episodes


def with_rows(key: str, change: object, number: int = 2) -> list[Episode]:
    """Clean episodes with an observation of one changed in place by `change(rows)`."""
    rows = np.array(clean(number).observation[key])
    change(rows)  # type: ignore[operator]
    return planted(number, observation={**clean(number).observation, key: rows})


def only(quality: Quality, check: str) -> Finding:
    """The one finding, which must be the only one."""
    assert [finding.check for finding in quality.findings] == [check]
    return quality.findings[0]


def of(quality: Quality, check: str) -> Finding:
    found = [finding for finding in quality.findings if finding.check == check]
    assert len(found) == 1, [finding.check for finding in quality.findings]
    return found[0]


def test_clean_data_is_silent() -> None:
    quality = audit([clean(i) for i in range(EPISODES)])
    assert quality.findings == ()
    assert quality.may_train
    facts = quality.facts
    assert (facts["episodes"], facts["steps"], facts["achieved_hz"]) == (4, 240, [20.0, 20.0, 20.0])
    assert [lag["steps"] for lag in facts["lag"]] == [0, 0, 0]
    assert facts["gripper_correlation"] > 0.8
    assert facts["windows_diffusion_policy"] == 4 * (60 - 16 + 8 + 2 - 1)


def test_slow_clock_and_gap() -> None:
    found = only(audit(planted(time=np.arange(STEPS) / 15.0)), "rate")
    assert (found.severity, found.place.episode) == (Severity.error, 2)
    assert found.value == pytest.approx(0.25)
    assert only(audit(planted(time=np.arange(STEPS) / 18.5)), "rate").severity is Severity.warning
    time = np.arange(STEPS) / HZ
    time[30:] += 0.1
    found = of(audit(planted(time=time)), "gap")
    assert (found.place.episode, found.place.step, found.severity) == (2, 30, Severity.warning)
    assert found.value == pytest.approx(3.0)
    time[30:] += 0.6
    assert of(audit(planted(time=time)), "gap").severity is Severity.error


def test_time_that_stands_still_jitters_or_was_computed() -> None:
    time = np.arange(STEPS) / HZ
    time[7] = time[6]
    assert of(audit(planted(time=time)), "time_stands_still").place.step == 7
    late = np.arange(STEPS) / HZ + np.where(np.arange(STEPS) % 6 == 3, 0.045, 0)
    assert only(audit(planted(time=late)), "jitter").place.episode == 2
    found = only(audit(planted(source=np.zeros(STEPS, np.uint8))), "time_not_measured")
    assert found.severity is Severity.note


def test_camera_ages() -> None:
    fresh = [0.01] * STEPS
    old = [0.01] * 20 + [0.07] + [0.01] * (STEPS - 21)
    assert audit(planted(metadata={"seed": 2, "ages_s": {"front": fresh, "wrist": fresh}})).findings == ()
    found = only(audit(planted(metadata={"seed": 2, "ages_s": {"front": fresh, "image/wrist": old}})), "camera_skew")
    assert (found.place.episode, found.place.step, found.place.camera) == (2, 20, "wrist")
    stale = [0.01] * 20 + [0.6] * (STEPS - 20)
    quality = audit(planted(metadata={"seed": 2, "ages_s": {"wrist": stale}}))
    found = only(quality, "stale_frame")
    assert (found.severity, found.place.camera, found.place.step, found.count) == (Severity.error, "wrist", 20, 40)
    future = [-0.2] * STEPS
    assert only(audit(planted(metadata={"ages_s": {"front": future}})), "frame_from_the_future").place.camera == "front"


def test_camera_ages_as_an_observation() -> None:
    spec = dataclasses.replace(
        SPEC, observation={**SPEC.observation, "age/wrist": ArraySpec("age/wrist", (1,), units=("s",))}
    )
    rng = np.random.default_rng(0)
    episodes = []
    for i in range(EPISODES):
        age = rng.uniform(0.01, 0.03, (STEPS, 1)).astype(np.float32)
        age[33] = 0.3 if i == 1 else 0.02
        episode = clean(i)
        episodes.append(
            dataclasses.replace(
                episode, observation={**episode.observation, "age/wrist": age},
                final_observation={**episode.final_observation, "age/wrist": age[-1]},
            )
        )  # fmt: skip
    found = of(audit(episodes, spec), "stale_frame")
    assert (found.place.episode, found.place.step, found.place.camera) == (1, 33, "wrist")


def test_frozen_repeated_black_and_plain_frames() -> None:
    def freeze(rows: np.ndarray) -> None:
        rows[25:45] = rows[25]

    found = only(audit(with_rows("image/wrist", freeze)), "frozen_camera")
    assert (found.severity, found.place.episode, found.place.step, found.place.camera) == (
        Severity.error,
        2,
        26,
        "wrist",
    )
    assert "--end 34" in found.fix  # 60 steps, of which 26 stay

    def refresh(rows: np.ndarray) -> None:
        """As H.264 gives it back: a few pixels change by a few levels when the picture is refreshed."""
        rows[25:45] = rows[25].clip(5, 250)
        rows[35:45, :4, :4] += 4

    found = only(audit(with_rows("image/wrist", refresh)), "frozen_camera")
    assert (found.place.step, found.value) == (26, 20)

    def halve(rows: np.ndarray) -> None:
        rows[1::2] = rows[:-1:2]

    found = only(audit(with_rows("image/front", halve)), "repeated_frames")
    assert (found.place.step, found.place.camera) == (1, "front")
    assert found.value == pytest.approx(0.5, abs=0.1)

    def darken(rows: np.ndarray) -> None:
        rows[11] = 3

    found = only(audit(with_rows("image/front", darken)), "black_frame")
    assert (found.place.step, found.severity) == (11, Severity.warning)

    def orange(rows: np.ndarray) -> None:
        rows[5:20] = (250, 120, 0)
        rows[5:20, 0, 0, 0] += np.arange(15, dtype=np.uint8) % 2

    found = of(audit(with_rows("image/front", orange)), "plain_frame")
    assert (found.place.step, found.severity, found.count) == (5, Severity.error, 15)


def test_a_still_camera_before_a_still_robot_is_a_note() -> None:
    episode = clean(2)
    still = {key: np.array(value) for key, value in episode.observation.items()}
    for rows in still.values():
        rows[10:30] = rows[10]
    quality = audit(planted(observation=still))
    assert {finding.severity for finding in quality.findings if finding.check == "frozen_camera"} == {Severity.note}


def test_two_cameras_that_are_one() -> None:
    same = {**clean(2).observation, "image/wrist": clean(2).observation["image/front"]}
    found = only(audit(planted(observation=same)), "same_camera")
    assert (found.place.episode, found.place.camera) == (2, "wrist")


def test_not_finite() -> None:
    def break_it(rows: np.ndarray) -> None:
        rows[17, 1] = np.nan

    found = of(audit(with_rows("proprio", break_it)), "not_finite")
    assert (found.place.episode, found.place.step, found.place.key, found.place.element) == (2, 17, "proprio", 1)
    assert not audit(with_rows("proprio", break_it)).may_train


def test_outside_spec_and_clipping() -> None:
    action = clean(2).action.copy()
    action[40, 2] = 1.25
    found = only(audit(planted(action=action)), "outside_spec")
    assert (found.place.step, found.place.element, found.place.key) == (40, 2, "action")
    assert found.value == pytest.approx(0.25)
    episodes = []
    for i in range(EPISODES):
        action = clean(i).action.copy()
        action[:45, 1] = 1
        episodes.append(dataclasses.replace(clean(i), action=action))
    found = of(audit(episodes), "clipping")
    assert (found.place.element, found.value) == (1, 0.75)


def test_constant_and_near_constant() -> None:
    def still(rows: np.ndarray) -> None:
        rows[:, 3] = 0.25

    episodes = [with_rows("proprio", still, number=i)[i] for i in range(EPISODES)]
    found = only(audit(episodes), "constant")
    assert (found.severity, found.place.key, found.place.element) == (Severity.note, "proprio", 3)
    rows = np.array(episodes[1].observation["proprio"])
    rows[8, 3] = 0.26
    episodes[1] = dataclasses.replace(episodes[1], observation={**episodes[1].observation, "proprio": rows})
    assert of(audit(episodes), "near_constant").place.element == 3
    dead = [dataclasses.replace(clean(i), action=np.zeros((STEPS, 4), np.float32)) for i in range(EPISODES)]
    assert of(audit(dead), "constant").severity is Severity.error


def test_units() -> None:
    def degrees(rows: np.ndarray) -> None:
        rows[:, 3] *= 180 / np.pi

    def millimetres(rows: np.ndarray) -> None:
        rows[:, 0] *= 1000

    for change, element, word in ((degrees, 3, "degrees"), (millimetres, 0, "millimetres")):
        episodes = [with_rows("proprio", change, number=i)[i] for i in range(EPISODES)]
        found = of(audit(episodes), "unit")
        assert (found.place.element, word in found.got) == (element, True)
    spec = dataclasses.replace(SPEC, observation={
        **SPEC.observation,
        "proprio": dataclasses.replace(SPEC.observation["proprio"], units=("m", "m", "m", "deg", "m", *("1",) * 4)),
    })  # fmt: skip
    assert "radians" in of(audit([clean(i) for i in range(EPISODES)], spec), "unit").got


def test_jump_and_spike() -> None:
    def teleport(rows: np.ndarray) -> None:
        rows[33:, 0] += 0.5

    found = of(audit(with_rows("proprio", teleport)), "jump")
    assert (found.severity, found.place.step, found.place.element) == (Severity.error, 33, 0)

    def spike(rows: np.ndarray) -> None:
        rows[20, 3] += 0.6

    found = only(audit(with_rows("proprio", spike)), "spike")
    assert (found.place.episode, found.place.element) == (2, 3)
    assert found.place.step in (20, 21)


def test_angle_that_wraps() -> None:
    def wrap(rows: np.ndarray) -> None:
        rows[30:, 3] -= 2 * np.pi

    found = of(audit(with_rows("proprio", wrap)), "angle_wrap")
    assert (found.place.step, found.place.element) == (30, 3)
    assert found.value == pytest.approx(2 * np.pi, abs=0.05)


def test_quaternions() -> None:
    def flip(rows: np.ndarray) -> None:
        rows[22:, 5:] *= -1

    found = only(audit(with_rows("proprio", flip)), "quaternion_sign")
    assert (found.place.step, found.place.element, found.severity) == (22, 5, Severity.warning)

    def stretch(rows: np.ndarray) -> None:
        rows[9, 5:] *= 1.5

    found = of(audit(with_rows("proprio", stretch)), "quaternion_norm")
    assert (found.place.step, found.severity) == (9, Severity.error)

    def turn(rows: np.ndarray) -> None:
        turned = Rotation.from_quat(rows[28:, [6, 7, 8, 5]]) * Rotation.from_rotvec([0, 0, 2.0])
        rows[28:, 5:] = turned.as_quat()[:, [3, 0, 1, 2]]

    found = only(audit(with_rows("proprio", turn)), "jump")
    assert found.place.step == 28
    assert found.value == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(("kind", "check"), [("euler", "euler_branch"), ("rotvec", "rotvec_branch")])
def test_branches_of_an_absolute_action(kind: str, check: str) -> None:
    """A turn about z through pi: the numbers jump by 2 pi, the rotation does not."""
    meanings = ("rotation x", "rotation y", "rotation z")
    semantics = ActionSemantics(
        ActionKind.absolute, DeltaReference.none, "base", "euler_xyz" if kind == "euler" else "rotvec", "none", "pose"
    )
    action = ArraySpec("action", (3,), units=("rad",) * 3, meanings=meanings)
    spec = dataclasses.replace(SPEC, action=action, action_semantics=semantics)
    angle = np.linspace(2.5, 3.8, STEPS)
    turned = Rotation.from_rotvec(np.stack([0 * angle, 0 * angle, angle], axis=1))
    rows = turned.as_euler("xyz") if kind == "euler" else turned.as_rotvec()
    before = [dataclasses.replace(clean(i), action=rows[:10].repeat(6, axis=0).astype(np.float32)) for i in range(2)]
    crossing = int(np.flatnonzero(angle > np.pi)[0])
    found = of(audit([*before, dataclasses.replace(clean(2), action=rows.astype(np.float32))], spec), check)
    assert (found.place.episode, found.place.step, found.place.element) == (2, crossing, 0)


def test_geodesic_is_scipys_angle_in_every_representation() -> None:
    rng = np.random.default_rng(0)
    turned = Rotation.random(20, random_state=np.random.RandomState(0))
    angle = (turned[:-1].inv() * turned[1:]).magnitude()
    quat = turned.as_quat() * rng.choice([-1, 1], (20, 1))
    matrix = turned.as_matrix()
    for kind, rows in (
        ("quat", quat), ("quat", quat[:, [3, 0, 1, 2]]), ("euler", turned.as_euler("xyz")), ("rotvec", turned.as_rotvec()),
        ("rot6d", np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], axis=1)),
    ):  # fmt: skip
        np.testing.assert_allclose(geodesic(rows, kind), angle, atol=1e-6)


@pytest.mark.parametrize("lag", [-2, 0, 3, 6])
def test_lag(lag: int) -> None:
    quality = audit([clean(i, lag=lag) for i in range(EPISODES)])
    assert [one["steps"] for one in quality.facts["lag"]] == [lag] * 3
    assert quality.facts["lag"][0]["ms"] == 50 * lag
    named = [finding for finding in quality.findings if finding.check == "lag"]
    expected = {-2: Severity.error, 6: Severity.warning}.get(lag)
    assert [finding.severity for finding in named] == ([] if expected is None else [expected])


def test_lag_of_an_absolute_action() -> None:
    """The commanded position is reached two steps later."""
    semantics = dataclasses.replace(
        SPEC.action_semantics, kind=ActionKind.absolute, delta_reference=DeltaReference.none
    )
    spec = dataclasses.replace(SPEC, action_semantics=semantics)
    episodes = []
    for i in range(EPISODES):
        episode = clean(i)
        place = np.asarray(episode.observation["proprio"][:, :3])
        action = episode.action.copy()
        action[:, :3] = np.concatenate([place[3:], place[-1:], place[-1:], place[-1:]])
        episodes.append(dataclasses.replace(episode, action=action))
    assert [one["steps"] for one in audit(episodes, spec).facts["lag"]] == [2, 2, 2]


def test_gripper_polarity() -> None:
    reversed_ = [clean(i, opens=-1.0) for i in range(EPISODES)]
    found = only(audit(reversed_), "gripper")
    assert (found.severity, found.place.element) == (Severity.error, 3)
    declared = dataclasses.replace(SPEC.action_semantics, gripper="-1 open .. 1 closed")
    assert audit(reversed_, dataclasses.replace(SPEC, action_semantics=declared)).findings == ()
    vague = dataclasses.replace(SPEC.action_semantics, gripper="normalised")
    assert (
        only(audit(reversed_, dataclasses.replace(SPEC, action_semantics=vague)), "gripper").severity is Severity.note
    )


def test_duplicates_and_seeds() -> None:
    episodes = [clean(i) for i in range(EPISODES)]
    episodes[3] = dataclasses.replace(episodes[1], metadata={"seed": 77})
    found = only(audit(episodes), "duplicate")
    assert found.place.episode == 3
    assert "episode 1" in found.got
    near = np.array(clean(1).observation["proprio"])
    near[:, 0] += 1e-4
    episodes[3] = dataclasses.replace(
        episodes[1], observation={**episodes[1].observation, "proprio": near}, metadata={"seed": 78}
    )
    found = only(audit(episodes), "near_duplicate")
    assert (found.place.episode, found.severity) == (3, Severity.note)
    found = only(audit(planted(metadata={"seed": 0})), "repeated_seed")
    assert (found.place.episode, found.episodes) == (2, (2,))


def test_starts() -> None:
    def begin(rows: np.ndarray) -> None:
        rows[0] = 0
        rows[0, 5] = 1

    episodes = []
    for i in range(EPISODES):
        proprio = np.array(clean(i).observation["proprio"])
        begin(proprio)
        observation = {key: np.array(value) for key, value in clean(i).observation.items()} | {"proprio": proprio}
        for key in ("image/front", "image/wrist"):
            observation[key][0] = clean(0).observation[key][0]
        episodes.append(dataclasses.replace(clean(i), observation=observation))
    assert of(audit(episodes), "same_start").value == 1


def test_windows_are_those_of_diffusion_policys_sampler() -> None:
    """Its loop over start indices from -pad_before to T - Tp + pad_after, counted (formats.md 2.1; pains.md B40)."""
    for steps in (1, 7, 8, 16, 60):
        loop = len(range(-(2 - 1), steps - 16 + (8 - 1) + 1))
        assert windows_of(steps, history=2, horizon=16, execute=8) == loop


def test_short_and_long_episodes() -> None:
    episodes = [clean(i) for i in range(EPISODES)]
    quality = audit([*episodes, clean(9, steps=7)])
    assert of(quality, "no_window").place.episode == 4
    assert quality.facts["episodes_without_window"] == 1
    assert of(audit([*episodes, clean(9, steps=12)]), "short_episode").severity is Severity.note
    found = of(audit([*episodes, clean(9, steps=130)]), "over_limit")
    assert (found.place.episode, found.value) == (4, 130)


def test_success_audit() -> None:
    steps = np.arange(STEPS)
    early = {"success": steps >= 0, "reward": np.ones(STEPS, np.float32)}
    assert only(audit(planted(**early)), "success_at_start").place.episode == 2
    at_reset = {"seed": 2, "success_at_reset": True}
    assert only(audit(planted(metadata=at_reset)), "success_at_start").place.step == 0
    between = (steps > 40) & (steps < 50)
    lost = {"success": between, "reward": between.astype(np.float32)}
    assert only(audit(planted(**lost)), "success_lost").place.step == 50
    found = only(audit(planted(reward=(steps == 12).astype(np.float32))), "reward_and_success")
    assert (found.place.step, found.severity, found.count) == (12, Severity.error, 2)
    assert only(audit(planted(reward=np.zeros(STEPS, np.float32))), "no_reward").severity is Severity.warning
    assert only(audit(planted(truncated=True)), "both_ends").place.episode == 2
    cut = {"terminated": False, "truncated": True, "success": steps < 0, "reward": np.zeros(STEPS, np.float32)}
    assert only(audit(planted(**cut)), "early_truncation").place.step == STEPS - 1


def test_share_of_successes() -> None:
    def failed(number: int) -> Episode:
        nothing = np.zeros(STEPS)
        return dataclasses.replace(clean(number), success=nothing > 0, reward=nothing.astype(np.float32))

    assert of(audit([failed(0), failed(1), failed(2), clean(3)]), "few_successes").value == 0.25
    quality = audit([failed(i) for i in range(EPISODES)])
    assert of(quality, "no_success").severity is Severity.error
    assert not quality.may_train
    no_signal = dataclasses.replace(SPEC, has_success=False)
    assert audit([failed(i) for i in range(EPISODES)], no_signal).may_train


def test_idle_end() -> None:
    episode = clean(2, steps=100)
    rows = np.array(episode.observation["proprio"])
    rows[50:] = rows[50]
    episodes = [clean(0), clean(1), dataclasses.replace(episode, observation={**episode.observation, "proprio": rows})]
    found = of(audit(episodes), "idle")
    assert (found.place.episode, found.severity) == (2, Severity.note)
    assert "--end" in found.fix


def test_no_episode_is_an_error() -> None:
    quality = audit([])
    assert [finding.check for finding in quality.findings] == ["empty"]
    assert not quality.may_train


def test_collapsed_names_all_episodes_and_the_worst() -> None:
    episodes = [
        dataclasses.replace(clean(i), time=np.arange(STEPS) / hz) for i, hz in enumerate((20.0, 15.0, 10.0, 12.0))
    ]
    quality = audit(episodes)
    (found,) = collapsed(quality.findings)
    assert (found.check, found.place.episode, found.episodes, found.count) == ("rate", 2, (1, 2, 3), 3)
    assert delete_command(1, 2, 3) in found.fix
    assert not may_train(quality.findings)


def test_every_name_of_a_check_is_listed() -> None:
    """Names are written where they are found; the list is what --ignore and the help know."""
    import re
    from pathlib import Path

    import robot_rl.data.quality as module

    folder = Path(module.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("quality_*.py"))
    assert {name for name in CHECKS if f'"{name}"' not in text} == set()
    named = set(re.findall(r'Finding\(\s*"([a-z0-9_]+)"', text))
    assert named <= CHECKS.keys()
