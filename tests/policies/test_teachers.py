"""Teachers: one answer an observation, cards against environments, cache, retries, turns, and the check of the classic faults."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.checks.findings import Severity
from robot_rl.checks.teacher import check_teacher
from robot_rl.data.normalizer import unit_actions
from robot_rl.data.observation_digest import row_digests
from robot_rl.data.teacher_card import card_of, card_problems, gripper_ends, require_card
from robot_rl.data.teacher_card_file import load_teacher_card
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.envs.history import Frame, HistoryEnv
from robot_rl.envs.point_reach import PointReachConfig, PointReachExpert, PointReachExpertConfig, PointReward, make_env
from robot_rl.errors import ConfigError, DeployError, PolicyError
from robot_rl.fitting.guided_env import GuidedEnv
from robot_rl.fitting.teacher_calls import AskedTeacher, CallConfig, newest_frames, take_rows
from robot_rl.fitting.teacher_quality import ShownSteps, measure_teacher, shown_by_expert
from robot_rl.policies.baseline_mlp import BaselineMlpConfig, BaselineMlpPolicy
from robot_rl.policies.teacher_policy import TeacherPolicy, TeacherPolicyConfig
from robot_rl.policies.teacher_scripted import ScriptedTeacher, ScriptedTeacherConfig
from robot_rl.runs.config import build
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, CameraSpec, DeltaReference, EnvSpec
from robot_rl.types import ActionChunk, Observation
from robot_rl.workbench import check

EXPERT = {"_target_": "robot_rl.envs.point_reach.PointReachExpert"}
NO_WAIT = CallConfig(wait_s=0.0)


def point_env(num_envs: int = 4, history: int = 1) -> HistoryEnv:
    return make_env(PointReachConfig(reward_mode=PointReward.dense), num_envs=num_envs, history=history)


def scripted(spec: EnvSpec, **settings: Any) -> ScriptedTeacher:
    config = ScriptedTeacherConfig(**({"expert": EXPERT} | settings))
    return ScriptedTeacher(config, spec=spec, build=build, load=lambda *_: None)


def seen(number: int = 6, history: int = 1) -> Observation:
    env = point_env(number, history)
    observation = env.reset(range(number))
    env.close()
    return observation


def answer(teacher: ScriptedTeacher, observation: Observation) -> torch.Tensor:
    return torch.as_tensor(teacher.label(observation).actions)[:, 0]


class Stub:
    """A teacher whose answers are x, y of the point, with a script of what happens at each call."""

    is_one_frame = False

    def __init__(self, spec: EnvSpec, *, is_remote: bool = False, history: int = 1) -> None:
        self.card, self.is_remote, self.history = (
            card_of(spec, name="stub", history=history, keys=()),
            is_remote,
            history,
        )
        self.asked: list[Observation] = []
        self.script: list[Callable[[], None]] = []

    def label(self, observation: Observation) -> ActionChunk:
        self.asked.append(observation)
        if self.script:
            self.script.pop(0)()
        return ActionChunk(torch.as_tensor(observation.proprio)[:, -1:].clone(), execute=1)

    def close(self) -> None: ...


SPEC = point_env(1).spec


def test_an_exact_teacher_is_its_expert_whatever_the_batch() -> None:
    observation, teacher = seen(), scripted(SPEC)
    expert = PointReachExpert(PointReachExpertConfig(), SPEC)
    seeds, new = np.arange(6), np.ones(6, dtype=bool)
    wanted = torch.as_tensor(expert.act(observation, episode_seeds=seeds, new_episode=new).actions)[:, 0]
    assert torch.equal(answer(teacher, observation), wanted)
    rows = np.array([4, 1])
    assert torch.equal(answer(teacher, take_rows(observation, rows)), wanted[[4, 1]])


def test_noise_and_lies_belong_to_the_observation() -> None:
    observation = seen(40)
    noisy = scripted(SPEC, noise=0.1)
    found = answer(noisy, observation)
    assert torch.equal(found, answer(scripted(SPEC, noise=0.1), observation))
    assert torch.equal(found[[7]], answer(noisy, take_rows(observation, np.array([7]))))
    assert not torch.equal(found, answer(scripted(SPEC, noise=0.1, seed=1), observation))
    exact = answer(scripted(SPEC), observation)
    inside = exact.abs() < 0.7  # where the bounds do not clip the noise
    assert 0.05 < float((found - exact)[inside].std()) < 0.15
    lies = answer(scripted(SPEC, lie_probability=1.0), observation)
    assert abs(float((lies * exact).mean())) < 0.25
    assert float(lies.abs().max()) <= 1.0


def test_it_errs_where_it_believes_something_wrong() -> None:
    """A goal believed 0.5 m further along x, in half of the states alone."""
    state = torch.tensor([[[0.0, 0.0, 0.05, 0.05]], [[0.0, 0.0, 0.05, -0.05]]])
    observation = Observation(proprio=state[:, :, :2].clone(), state=state)
    teacher = scripted(SPEC, belief_elements=(2,), belief_offset=(-0.1,), wrong_element=3, wrong_above=0.0)
    assert torch.allclose(answer(teacher, observation), torch.tensor([[-0.5, 0.5], [0.5, -0.5]]), atol=1e-6)
    assert torch.equal(observation.state, state)
    biased = scripted(SPEC, bias=(0.2, 0.0), scale=1.5)
    assert torch.allclose(answer(biased, observation), torch.tensor([[0.95, 0.75], [0.95, -0.75]]), atol=1e-6)


def test_an_expert_with_noise_of_its_own_is_refused() -> None:
    teacher = scripted(SPEC, expert=EXPERT | {"noise_sd": 0.1})
    with pytest.raises(PolicyError, match="depends on the observation alone"):
        teacher.label(seen())


@pytest.mark.parametrize(
    "settings", [{"expert": {}}, {"noise": -1.0}, {"bias": (1.0,)}, {"belief_elements": (9,), "belief_offset": (1.0,)}]
)
def test_wrong_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"teacher\."):
        scripted(SPEC, **settings)


def test_a_policy_of_ours_teaches_with_fixed_noise() -> None:
    keys = ("state",)
    policy = BaselineMlpPolicy(
        BaselineMlpConfig(hidden=(8,), observation_keys=keys), SPEC, unit_actions(SPEC, keys)
    ).with_mode(SamplingMode.eta1)
    asked: list[Any] = []

    def load(path: str, mode: str | None) -> BaselineMlpPolicy:
        asked.append((path, mode))
        return policy

    teacher = TeacherPolicy(TeacherPolicyConfig(policy="runs/x"), spec=SPEC, build=build, load=load)
    assert asked == [("runs/x", None)]
    assert (teacher.card.name, teacher.card.keys, teacher.history) == ("runs/x", keys, 1)
    observation = seen()
    first, second = (torch.as_tensor(teacher.label(observation).actions) for _ in range(2))
    assert torch.equal(first, second)
    turned = torch.as_tensor(teacher.label(take_rows(observation, np.arange(6)[::-1].copy())).actions)
    assert torch.allclose(turned.flip(0), first, atol=1e-6)
    with pytest.raises(ConfigError, match=r"teacher\.policy"):
        TeacherPolicy(TeacherPolicyConfig(), spec=SPEC, build=build, load=load)
    other = replace(SPEC, action_semantics=replace(SPEC.action_semantics, delta_reference=DeltaReference.target))
    with pytest.raises(PolicyError, match="action semantics"):
        TeacherPolicy(TeacherPolicyConfig(policy="runs/x"), spec=other, build=build, load=load)
    wider = replace(SPEC, observation=SPEC.observation | {"state": replace(SPEC.observation["state"], shape=(5,))})
    with pytest.raises(PolicyError, match=r"observation 'state': expected \(4,\)"):
        TeacherPolicy(TeacherPolicyConfig(policy="runs/x"), spec=wider, build=build, load=load)


def test_the_cache_keeps_order_asks_each_row_once_and_stays_small() -> None:
    stub = Stub(SPEC)
    teacher = AskedTeacher(stub, CallConfig(cache_entries=5))
    observation = seen(4)
    wanted = observation.proprio[:, -1]
    assert torch.equal(teacher.label(observation), wanted)
    mixed = take_rows(seen(6), np.array([5, 1, 4, 0, 5]))
    assert torch.equal(teacher.label(mixed), mixed.proprio[:, -1])
    assert [len(each.proprio) for each in stub.asked] == [4, 3]  # rows 5, 4 and 5 again were new
    assert (teacher.hits, teacher.rows, teacher.calls) == (2, 7, 2)
    assert torch.equal(teacher.label(take_rows(observation, np.array([2]))), wanted[[2]])  # dropped: 6 of 5 kept
    assert teacher.calls == 3
    assert len(teacher._cache) == 5


def test_digests_tell_observations_apart() -> None:
    observation = seen(3)
    digests = row_digests(observation)
    assert len(set(digests)) == 3
    assert row_digests(take_rows(observation, np.array([2, 0]))) == [digests[2], digests[0]]
    texts = replace(observation, instruction=("a", "b", "a"))
    assert not set(row_digests(texts)) & set(digests)
    changed = replace(observation, state=torch.nextafter(observation.state, torch.tensor(9.0)))
    assert not set(row_digests(changed)) & set(digests)


def fail() -> None:
    raise ConnectionResetError("gone")


def test_a_remote_teacher_is_asked_again_with_growing_waits() -> None:
    stub, waits = Stub(SPEC, is_remote=True), []
    stub.script = [fail, fail]
    teacher = AskedTeacher(stub, CallConfig(retries=2, wait_s=0.5), sleep=waits.append)
    observation = seen(3)
    assert torch.equal(teacher.label(observation), observation.proprio[:, -1])
    assert (waits, teacher.retried, teacher.calls) == ([0.5, 1.0], 2, 1)
    stub.script = [fail] * 3
    with pytest.raises(DeployError, match=r"ConnectionResetError: gone.*asked 3 times"):
        teacher.label(observation)


def test_a_late_answer_is_given_up() -> None:
    stub, release = Stub(SPEC, is_remote=True), threading.Event()
    stub.script = [lambda: release.wait(60) and None]
    teacher = AskedTeacher(stub, CallConfig(retries=5, wait_s=0.0, timeout_s=0.5))
    try:
        observation = seen(2)  # the first call hangs, the others answer at once
        assert torch.equal(teacher.label(observation), observation.proprio[:, -1])
        assert teacher.retried >= 1
    finally:
        release.set()


def test_a_bad_answer_is_no_reason_to_ask_again() -> None:
    stub = Stub(SPEC, is_remote=True)
    observation = seen(2)
    bad = replace(observation, proprio=torch.full_like(observation.proprio, float("nan")))
    with pytest.raises(PolicyError, match="not all finite"):
        AskedTeacher(stub, NO_WAIT).label(bad)
    assert len(stub.asked) == 1


def guided(stub: Stub, *, num_envs: int = 4, on_demand: bool = False, history: int = 1, **calls: Any) -> GuidedEnv:
    most = max(history, stub.history)
    return GuidedEnv(
        point_env(num_envs, most), history=history, teachers=[AskedTeacher(stub, CallConfig(**calls))], reference=None,
        config=CallConfig(**calls), on_demand=on_demand, fail_window=2,
    )  # fmt: skip


def play(env: GuidedEnv, steps: int, action: torch.Tensor | None = None) -> list[np.ndarray]:
    env.reset(iter(range(10_000)))
    due = []
    for _ in range(steps):
        due.append(env.due())
        still = torch.zeros(env.num_envs, 1, 2) if action is None else action
        env.step(ActionChunk(still, execute=1))
    return due


def test_teachers_are_asked_in_turns() -> None:
    stub = Stub(SPEC)
    env = guided(stub, envs=3, every=2)
    due = play(env, 6)
    assert [np.flatnonzero(each).tolist() for each in due] == [[0, 1, 2], [], [0, 1, 3], [], [0, 2, 3], []]
    labels = env.take()
    assert labels is not None
    assert labels.asked[:, 0].tolist() == [each.tolist() for each in due]
    assert [len(each.proprio) for each in stub.asked] == [3, 3, 3]
    where = labels.asked[2, 0]
    assert torch.equal(labels.teacher[2, 0, where], torch.as_tensor(stub.asked[1].proprio)[:, -1])
    assert not labels.teacher[2, 0, ~where].any()
    assert env.take() is None
    env.close()


def test_each_sees_its_own_number_of_frames() -> None:
    stub = Stub(SPEC, history=3)
    env = guided(stub, history=2)
    assert env.reset(range(4)).proprio.shape[1] == 2
    result = env.step(ActionChunk(torch.ones(4, 1, 2), execute=1))
    assert (result.observation.proprio.shape[1], result.final_observation.proprio.shape[1]) == (2, 2)
    assert stub.asked[0].proprio.shape[1] == 3
    assert torch.equal(newest_frames(stub.asked[0], 1).proprio, stub.asked[0].proprio[:, -1:])
    env.close()


def test_on_demand_asks_until_an_env_has_succeeded() -> None:
    env = guided(Stub(SPEC), on_demand=True)
    observation = env.reset(iter(range(10_000)))
    expert = PointReachExpert(PointReachExpertConfig(), SPEC)
    won = np.zeros(4, dtype=bool)
    for _ in range(60):
        assert (env.due() == ~won).all()
        chunk = expert.act(observation, episode_seeds=env.episode_seeds, new_episode=won)
        actions = torch.as_tensor(chunk.actions)
        actions[2:] = 0.0  # these two never get there
        result = env.step(ActionChunk(actions, execute=1))
        observation, won = result.observation, won | result.success.numpy()
    assert won.tolist() == [True, True, False, False]
    env.close()


def test_gripper_texts_of_simulators_are_read() -> None:
    assert gripper_ends("-1 closed .. 1 open") == (-1.0, 1.0)
    assert gripper_ends("-1 closed (-0.01 m) .. 1 open (0.04 m)") == (-1.0, 1.0)
    assert gripper_ends("0 m closed .. 0.04 m open") == (0.0, 0.04)
    assert gripper_ends("-1 open .. 1 closed") == (1.0, -1.0)
    assert gripper_ends("0 m open (fingers apart) .. 0.04 m closed") == (0.04, 0.0)
    assert [gripper_ends(text) for text in ("none", "0 .. 255", "closed... open", "1 closed")] == [None] * 4


GRIPPER_SPEC = EnvSpec(
    env_id="Jaw",
    observation={"proprio": ArraySpec("proprio", (2,)), "image/front": ArraySpec("image/front", (8, 6, 3), "uint8")},
    action=ArraySpec(
        "action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0), units=("1 = 0.1 m", "1"), meanings=("move x", "gripper")
    ),
    action_semantics=ActionSemantics(
        ActionKind.delta, DeltaReference.measured, "base", "none", "-1 closed .. 1 open", "delta"
    ),
    joint_names=("j",),
    robot="jaw",
    control_hz=10.0,
    max_episode_steps=5,
)
CARD = """
name: vla
size: 2
control_hz: 10
semantics: {kind: delta, delta_reference: measured, frame: base, rotation: none, gripper: "-1 closed .. 1 open", control_mode: delta}
scale: [1, 2]
offset: [0, -1]
gripper: [0, 1]
keys: [proprio]
cameras: {base: {source: front, height: 8, width: 6, colour: bgr}}
needs_instruction: true
"""


def card_file(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = CARD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "vla.yaml"
    path.write_text(text)
    return path


FRONT = CameraSpec(6, 8, 5.0, 5.0, 2.5, 3.5, position_m=(0.5, 0.0, 0.4), quaternion_wxyz=(0.0, 1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("pose", "told"),
    [
        ("position_m: [0.5, 0, 0.4], quaternion_wxyz: [0, 1, 0, 0]", None),
        ("position_m: [0.5, 0, 0.4], quaternion_wxyz: [0, -1, 0, 0]", None),  # the same rotation
        ("position_m: [0.509, 0, 0.4], quaternion_wxyz: [0.0087, 0.99996, 0, 0]", None),  # 9 mm, 1 degree
        ("position_m: [0.5, 0.03, 0.44], quaternion_wxyz: [0, 1, 0, 0]", "0.05 m away"),
        ("position_m: [0.5, 0, 0.4], quaternion_wxyz: [0.0872, 0.9962, 0, 0]", r"turned by 0\.17"),  # 10 degrees
        ("position_m: [0.5, 0, 0.4], quaternion_wxyz: [0, 1, 0, 0], frame: hand", "in the frame of 'hand' in training, of 'base' here"),
    ],
)  # fmt: skip
def test_the_pose_of_a_camera_is_the_one_that_the_card_states(tmp_path: Path, pose: str, told: str | None) -> None:
    card = load_teacher_card(card_file(tmp_path, ("colour: bgr", f"colour: bgr, {pose}")))
    here = replace(GRIPPER_SPEC, cameras={"front": FRONT})
    if told is None:
        require_card(card, here)
    else:
        with pytest.raises(PolicyError, match=f"camera base, pose.*{told}"):
            require_card(card, here)
    with pytest.raises(PolicyError, match="an environment that describes this camera"):
        require_card(card, GRIPPER_SPEC)


@pytest.mark.parametrize(
    "pose",
    ["position_m: [0.5, 0, 0.4]", "position_m: [0.5, 0], quaternion_wxyz: [0, 1, 0, 0]",
     "position_m: [0.5, 0, 0.4], quaternion_wxyz: [0, 2, 0, 0]", "position_m: [a, 0, 0.4], quaternion_wxyz: [0, 1, 0, 0]",
     "position_m: [.nan, 0, 0], quaternion_wxyz: [.nan, 0, 0, 0]", "frame: hand", "position_m: [], quaternion_wxyz: []",
     "position_m: null"],
)  # fmt: skip
def test_half_a_pose_is_refused(tmp_path: Path, pose: str) -> None:
    with pytest.raises(ConfigError, match=r"vla\.yaml"):
        load_teacher_card(card_file(tmp_path, ("colour: bgr", f"colour: bgr, {pose}")))


def test_a_card_that_fits(tmp_path: Path) -> None:
    card = load_teacher_card(card_file(tmp_path))
    assert card_problems(card, GRIPPER_SPEC) == []
    require_card(card, GRIPPER_SPEC)
    own = np.array([[[0.5, 0.0]], [[-0.5, 1.0]]], dtype=np.float32)
    assert card.to_env(own).tolist() == [[[0.5, -1.0]], [[-0.5, 1.0]]]
    assert (card.cameras["base"].colour.value, card.needs_instruction) == ("bgr", True)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (("delta_reference: measured", "delta_reference: target"), "action delta_reference"),
        (("kind: delta, delta_reference: measured", "kind: absolute, delta_reference: none"), "action kind"),
        (("gripper: [0, 1]", "gripper: [1, 0]"), "gripper"),
        (("offset: [0, -1]", "offset: []"), "gripper"),
        (("control_hz: 10", "control_hz: 5"), "control_hz"),
        (("size: 2", "size: 7"), "action size"),
        (("size: 2", "size: 2\nsent_size: 1"), "sent_size"),
        (("height: 8", "height: 224"), "camera base"),
        (("source: front", "source: wrist"), "camera base"),
        (("keys: [proprio]", "keys: [state]"), "observation state"),
    ],
)
def test_a_card_that_does_not_fit(change: tuple[str, str], where: str, tmp_path: Path) -> None:
    card = load_teacher_card(card_file(tmp_path, change))
    assert where in [problem.where for problem in card_problems(card, GRIPPER_SPEC)]
    with pytest.raises(PolicyError, match="check teacher"):
        require_card(card, GRIPPER_SPEC)


def with_gripper(text: str, meanings: tuple[str, str] = ("move x", "gripper")) -> EnvSpec:
    return replace(
        GRIPPER_SPEC, action_semantics=replace(GRIPPER_SPEC.action_semantics, gripper=text),
        action=replace(GRIPPER_SPEC.action, meanings=meanings),
    )  # fmt: skip


def test_every_gripper_element_is_checked_whichever_end_comes_first(tmp_path: Path) -> None:
    said, text = 'gripper: "-1 closed .. 1 open"', "-1 open .. 1 closed"
    turned = load_teacher_card(card_file(tmp_path, (said, f'gripper: "{text}"')))
    (problem,) = card_problems(turned, with_gripper(text))
    assert problem.got == "closed -1, open 1 (flipped)"
    right = load_teacher_card(card_file(tmp_path, (said, f'gripper: "{text}"'), ("gripper: [0, 1]", "gripper: [1, 0]")))
    assert card_problems(right, with_gripper(text)) == []
    # Two fingers: [0, 1] to [-1, 1] was said of the second alone.
    hands = with_gripper("-1 closed .. 1 open", ("left finger", "right finger"))
    card = load_teacher_card(card_file(tmp_path))
    assert [(each.where, each.got) for each in card_problems(card, hands)] == [
        ("gripper, left finger", "closed 0, open 1")
    ]


def test_a_gripper_that_can_not_be_compared_is_a_problem(tmp_path: Path) -> None:
    odd = "0 .. 255, the fingers apart at 255"
    card = load_teacher_card(card_file(tmp_path, ('gripper: "-1 closed .. 1 open"', f'gripper: "{odd}"')))
    (problem,) = card_problems(card, with_gripper(odd))
    assert (problem.where, problem.got) == ("gripper of the environment", repr(odd))
    (problem,) = card_problems(load_teacher_card(card_file(tmp_path)), with_gripper("-1 closed .. 1 open", ("x", "y")))
    assert problem.expected == "an element whose meaning names it"
    # A teacher that speaks the environment's own language has nothing to convert.
    assert card_problems(card_of(with_gripper(odd), name="own", history=1, keys=()), with_gripper(odd)) == []


def test_a_flipped_gripper_is_called_so(tmp_path: Path) -> None:
    (problem,) = card_problems(
        load_teacher_card(card_file(tmp_path, ("gripper: [0, 1]", "gripper: [1, 0]"))), GRIPPER_SPEC
    )
    assert problem.got == "closed 1, open -1 (flipped)"


@pytest.mark.parametrize(
    "change",
    [("needs_instruction", "needs_text"), ("name: vla", ""), ("kind: delta", "kind: jump"), ("height: 8, ", "")],
)
def test_a_card_that_can_not_be_read(change: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vla\.yaml"):
        load_teacher_card(card_file(tmp_path, change))


class JawSim:
    """Moves by the first element; the second is a gripper."""

    def __init__(self) -> None:
        self.spec, self.num_envs, self.device = GRIPPER_SPEC, 2, torch.device("cpu")

    def reset_envs(self, mask: np.ndarray, seeds: np.ndarray) -> Frame:
        return self._frame()

    def step_envs(self, action: torch.Tensor, active: np.ndarray) -> Frame:
        return self._frame()

    def _frame(self) -> Frame:
        none = torch.zeros(2, dtype=torch.bool)
        images = torch.zeros(2, 8, 6, 3, dtype=torch.uint8)
        return Frame({"proprio": torch.zeros(2, 2), "image/front": images}, torch.zeros(2), none, none)

    def protocol(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


class Says:
    """Answers proprio times a factor by element."""

    is_remote, history = False, 1

    def __init__(self, factor: tuple[float, float], tail: str = "") -> None:
        self.factor = torch.tensor(factor)
        self.card = card_of(GRIPPER_SPEC, name="says" + tail, history=1, keys=("proprio",))

    def label(self, observation: Observation) -> ActionChunk:
        return ActionChunk(torch.as_tensor(observation.proprio)[:, -1:] * self.factor, execute=1)


@pytest.mark.parametrize(
    ("factor", "check", "says"),
    [
        ((1.0, 1.0), None, ""),
        ((1.2, 1.0), None, ""),
        ((2.0, 1.0), "deltas", "doubled delta"),
        ((-1.0, 1.0), "deltas", "-1.00 times"),
        ((1.0, -1.0), "gripper", "flipped gripper"),
    ],
)
def test_the_classic_faults_are_found(factor: tuple[float, float], check: str | None, says: str) -> None:
    rng = np.random.default_rng(0)
    shown = np.column_stack([rng.uniform(-0.45, 0.45, 200), rng.choice([-1.0, 1.0], 200)]).astype(np.float32)
    images = {"front": torch.zeros(200, 1, 8, 6, 3, dtype=torch.uint8)}
    steps = ShownSteps(Observation(proprio=torch.from_numpy(shown)[:, None], images=images), shown)
    env = HistoryEnv(JawSim(), history=1, terminate_on_success=False)
    observation = take_rows(steps.observation, np.arange(5))
    findings = check_teacher(AskedTeacher(Says(factor), NO_WAIT), env, observation=observation, shown=steps)
    errors = [finding for finding in findings if finding.severity is Severity.error]
    assert [finding.check for finding in errors] == ([] if check is None else [check])
    assert all(says in finding.got for finding in errors)


def test_without_anything_shown_the_check_says_so() -> None:
    env = point_env(3)
    findings = check_teacher(
        AskedTeacher(scripted(SPEC, lie_probability=1.0), NO_WAIT), env, observation=env.reset(range(3)), shown=None
    )
    assert {finding.check: finding.severity for finding in findings} == dict.fromkeys(
        ("deltas", "gripper", "error"), Severity.skipped
    )
    env.close()


def test_a_teacher_that_mixes_rows_is_found() -> None:
    class Sorted(Stub):
        def label(self, observation: Observation) -> ActionChunk:
            return ActionChunk(torch.as_tensor(observation.proprio)[:, -1:].sort(0).values, execute=1)

    env = point_env(3)
    findings = check_teacher(AskedTeacher(Sorted(SPEC), NO_WAIT), env, observation=env.reset(range(3)), shown=None)
    assert "order" in [finding.check for finding in findings if finding.severity is Severity.error]
    env.close()


def test_the_report_of_a_teacher_of_known_quality() -> None:
    env = point_env(8)
    shown = shown_by_expert(PointReachExpert(PointReachExpertConfig(), SPEC), env, range(20))
    exact, traces = measure_teacher(AskedTeacher(scripted(SPEC), NO_WAIT), env, range(20), shown=shown)
    assert (exact["success_once"]["k"], exact["success_once"]["n"]) == (20, 20)
    assert exact["agreement"]["error_half_ranges"] == 0.0
    assert bool(traces.success.all())
    assert len(traces.action) == len(shown.action) == round(20 * exact["length"]["mean"])
    # It believes the goal 0.2 m aside where y of the goal is above 0; on its way there it may pass the true one.
    wrong = scripted(SPEC, belief_elements=(2,), belief_offset=(0.2,), wrong_element=3, wrong_above=0.0)
    report, traces = measure_teacher(AskedTeacher(wrong, NO_WAIT), env, range(20), shown=shown)
    assert 0 < report["success_once"]["k"] < 20
    assert report["success_once"]["low"] < report["success_once"]["rate"] < report["success_once"]["high"]
    assert traces.observation.state is not None
    above = traces.observation.state[:, -1, 3] > 0
    assert bool(traces.success[~above].all())
    assert not bool(traces.success[above].all())
    env.close()


class Doubling:
    """A served policy: two actions of twice the proprio, minus the first pixel; `fails` raises, `late` waits."""

    device, noise_shape, sampling = None, (0, 2, 2), "known"

    def __init__(self, keys: tuple[str, ...] = ("proprio",)) -> None:
        self.spec = GRIPPER_SPEC
        self.config = SimpleNamespace(observation_keys=keys, history=1, horizon=2, execute=1)
        # Events: a server keeps a shallow copy of the policy for each client.
        self.fails, self.late = threading.Event(), threading.Event()
        self.late.set()

    def reset(self, mask: np.ndarray) -> None: ...

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        self.late.wait(60)
        if self.fails.is_set():
            raise RuntimeError("the weights are gone")
        actions = np.repeat(2 * observation.proprio[:, -1:], 2, axis=1)
        for image in observation.images.values():
            actions = actions - image[:, -1, 0, 0, :1].astype(np.float32)[:, None]
        return ActionChunk(np.float32(actions), execute=1)


def served(policy: Doubling, **options: Any) -> Any:
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    from robot_rl.deploy.server import PolicyServer, ServerOptions

    server = PolicyServer(
        policy, NoiseSource(NoiseRule.fixed, 0, policy.noise_shape), ServerOptions(**({"port": 0} | options))
    )
    server.start()
    return server


def client(port: int, **settings: Any) -> Any:
    from robot_rl.policies.teacher_client import TeacherClient, TeacherClientConfig

    config = TeacherClientConfig(uri=f"ws://127.0.0.1:{port}", **settings)
    return TeacherClient(config, spec=GRIPPER_SPEC, build=build, load=lambda *_: None)


def jaws(number: int = 3) -> Observation:
    proprio = torch.arange(2.0 * number).reshape(number, 1, 2) / 10
    images = torch.zeros(number, 1, 8, 6, 3, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([1, 2, 3])  # rgb of the first pixel from the top
    images[:, 0, 7, 0] = torch.tensor([4, 5, 6])
    return Observation(proprio=proprio, images={"front": images})


def test_a_served_policy_of_ours_teaches_in_batches_and_survives_a_restart() -> None:
    policy = Doubling()
    server = served(policy)
    teacher = client(server.port)
    observation = jaws()
    asked = AskedTeacher(teacher, CallConfig(retries=2, wait_s=0.0, timeout_s=60.0))
    try:
        assert (teacher.history, teacher.card.keys, teacher.is_remote) == (1, ("proprio",), True)
        assert torch.equal(asked.label(observation), 2 * observation.proprio[:, -1])
        port = server.port
        server.close()
        with pytest.raises(DeployError, match="asked 3 times"):
            asked.label(observation)
        server = served(policy, port=port)
        assert torch.equal(asked.label(observation), 2 * observation.proprio[:, -1])
        policy.fails.set()
        with pytest.raises(DeployError, match="the weights are gone"):
            asked.label(observation)
    finally:
        teacher.close()
        server.close()


def test_a_foreign_server_is_read_by_its_card(tmp_path: Path) -> None:
    """openpi's protocol, one frame a message; [0, 1] gripper, a bgr camera from the bottom, a prompt."""
    policy = Doubling(keys=("proprio", "image/front"))
    server = served(policy, names={"proprio": ("observation/state",), "image/front": ("base",)})
    path = card_file(tmp_path, ("colour: bgr", "colour: bgr, upside_down: true"))
    try:
        with pytest.raises(ConfigError, match=r"teacher\.names"):
            client(server.port, card=str(path))
        teacher = client(server.port, card=str(path), names={"proprio": "observation/state"}, prompt="close the jaw")
        observation = jaws()
        # The server sees row 7's last channel first: 6. Its action is 2 p - 6; ours has 2 a - 1 at the gripper.
        own = 2 * observation.proprio[:, -1] - 6
        wanted = own * torch.tensor([1.0, 2.0]) - torch.tensor([0.0, 1.0])
        assert torch.allclose(torch.as_tensor(teacher.label(observation).actions), wanted[:, None].expand(-1, 2, -1))
        policy.fails.set()
        with pytest.raises(DeployError, match="the weights are gone"):
            teacher.label(observation)
        policy.fails.clear()
        assert teacher.label(take_rows(observation, np.array([1]))).actions.shape == (1, 2, 2)  # a new connection
        texts = replace(observation, instruction=("a", "b", "c"))
        assert teacher.label(texts).actions.shape == (3, 2, 2)
        silent = client(server.port, card=str(path), names={"proprio": "observation/state"})
        with pytest.raises(ConfigError, match=r"teacher\.prompt"):
            silent.label(observation)
        silent.close()
        policy.late.clear()
        late = client(server.port, card=str(path), names={"proprio": "observation/state"}, prompt="x", answer_s=0.2)
        with pytest.raises(DeployError, match="TimeoutError"):
            late.label(observation)
        late.close()
        teacher.close()
    finally:
        policy.late.set()
        server.close()


def test_no_server_is_an_error_that_says_where() -> None:
    pytest.importorskip("websockets")
    with pytest.raises(DeployError, match=r"127\.0\.0\.1:9"):
        client(9, connect_s=5.0)


def test_the_command_names_a_doubled_delta(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "teacher",
        "env=point_reach",
        "teacher=point_reach",
        "expert=point_reach",
        "quality_episodes=150",
        "num_envs=150",
    ]
    assert check.main(words) == 0
    assert "8 checks: 0 error, 0 warning" in capsys.readouterr().out
    assert check.main([*words, "teacher.scale=2"]) == 1
    assert "2.00 times them: doubled delta" in capsys.readouterr().out


def test_the_command_asks_the_teacher_and_not_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    """A teacher that draws its answers: the cache would repeat the first draw."""
    words = ["teacher", "env=point_reach", "~teacher", "+teacher={_target_: odd_teachers.DrawingTeacher}"]
    assert check.main([*words, "calls.cache_entries=1000"]) == 1
    out = capsys.readouterr().out
    assert "error    order" in out
    assert "warning  repeats" in out
