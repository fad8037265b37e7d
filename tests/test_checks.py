"""Conformance suites: ours pass, and every sabotaged environment or policy is caught by the check that is meant."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robot_rl.checks import ENV_CHECKS, POLICY_CHECKS, Finding, Severity, check_env, check_policy
from robot_rl.checks.findings import error, run_checks
from robot_rl.checks.play import chunk_length, play
from robot_rl.envs.history import Frame, HistoryEnv
from robot_rl.envs.point_reach import PointReach, PointReachConfig
from robot_rl.errors import ConfigError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation, StepResult
from robot_rl.workbench import check

LIMIT, EPISODES = 10, 8
# How an episode ends, by seed % 4: step of success and of failure; chunks have 4 actions.
SUCCESS_AT, FAIL_AT = np.array([2, 99, 99, 6]), np.array([99, 3, 99, 99])


class Walk:
    """A StepEnv whose state adds up its actions from a start drawn from the seed, and whose ends are known."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        unbounded = {key: replace(array, low=None, high=None) for key, array in POINT.spec.observation.items()}
        self.spec = replace(POINT.spec, observation=unbounded, max_episode_steps=LIMIT)
        self.state, self.seeds = torch.zeros(num_envs, 4), np.zeros(num_envs, dtype=np.int64)
        self.count = np.zeros(num_envs, dtype=np.int64)

    def reset_envs(self, mask: np.ndarray, seeds: np.ndarray) -> Frame:
        for row in np.flatnonzero(mask):
            self.state[row] = torch.from_numpy(np.random.default_rng(seeds[row]).normal(size=4).astype(np.float32))
        self.seeds[mask], self.count[mask] = seeds[mask], 0
        return self._frame()

    def step_envs(self, action: torch.Tensor, active: np.ndarray) -> Frame:
        self.state[torch.from_numpy(active), :2] += action[torch.from_numpy(active)]
        self.count[active] += 1
        return self._frame()

    def _frame(self) -> Frame:
        success, fail = (torch.from_numpy(self.count == at[self.seeds % 4]) for at in (SUCCESS_AT, FAIL_AT))
        observation = {"proprio": self.state[:, :2].clone(), "state": self.state.clone()}
        return Frame(observation=observation, reward=self.state[:, 0].clone(), success=success, fail=fail)

    def protocol(self) -> dict[str, Any]:
        return {"task": "Walk"}

    def close(self) -> None:
        pass


POINT = PointReach(PointReachConfig(), num_envs=1)


class Point(HistoryEnv):
    """A VectorEnv that keeps its contract. Each subclass breaks one rule."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(Walk(num_envs), history=2, terminate_on_success=True)


def names(findings: list[Finding], severity: Severity = Severity.error) -> set[str]:
    return {finding.check for finding in findings if finding.severity is severity}


def env_errors(make: Callable[[int], Any]) -> set[str]:
    return names(check_env(make, num_episodes=EPISODES))


def test_our_env_keeps_its_contract():
    assert check_env(Point, num_episodes=EPISODES) == []


def test_the_play_shows_every_kind_of_end():
    """Otherwise the suite would pass for want of something to look at."""
    recording = play(Point(3), list(range(EPISODES)))
    rows = [(c, row) for c in recording for row in np.flatnonzero(c.ended)]
    lengths = {int(c.seeds[row]): int(c.values["executed"][row]) for c, row in rows}
    assert lengths == {0: 2, 1: 3, 2: 2, 3: 2, 4: 2, 5: 3, 6: 2, 7: 2}
    ends = {int(c.seeds[row]): bool(c.values["truncated"][row]) for c, row in rows}
    assert [seed for seed, truncated in ends.items() if truncated] == [2, 6]
    assert {len(set(c.values["executed"].tolist())) for c in recording} >= {2, 3}  # staggered


class AliasedFrames(Point):
    """Returns the same memory at every step."""

    def step(self, chunk: ActionChunk) -> StepResult:
        result = super().step(chunk)
        if not hasattr(self, "memory"):
            self.memory = result.observation
        for mine, new in zip(self.memory.arrays().values(), result.observation.arrays().values(), strict=True):
            mine.copy_(new)
        return replace(result, observation=replace(self.memory, time=result.observation.time))


class OwnSeedArray(Point):
    @property
    def episode_seeds(self) -> np.ndarray:
        return self._seeds


class IgnoresSeeds(Point):
    """Draws starts from a generator of its own."""

    def reset(self, seeds: Any) -> Observation:
        self.counter = getattr(self, "counter", 1000) + 1
        observation = super().reset(seeds)
        return replace(observation, state=observation.state + self.counter)


class DropsTheLastSeed(Point):
    def reset(self, seeds: Any) -> Observation:
        seeds = list(seeds)
        return super().reset(seeds[:-1] if len(seeds) > 4 else seeds)


class NeverIdle(Point):
    """Goes on with seeds that nobody gave."""

    def reset(self, seeds: Any) -> Observation:
        return super().reset(itertools.chain(seeds, itertools.count(10_000)))


class DependsOnTheSlot(Point):
    def reset(self, seeds: Any) -> Observation:
        observation = super().reset(seeds)
        return replace(observation, state=observation.state + 0.01 * torch.arange(self.num_envs)[:, None, None])


class SharesPhysics(Point):
    """With several envs, actions move less far."""

    def step(self, chunk: ActionChunk) -> StepResult:
        return super().step(replace(chunk, actions=chunk.actions / self.num_envs))


class FinalIsNext(Point):
    """Gives the observation after the auto-reset as the final one."""

    def step(self, chunk: ActionChunk) -> StepResult:
        result = super().step(chunk)
        return replace(result, final_observation=result.observation)


class ObservationIsFinal(Point):
    """Gives the end of the old episode as the start of the next one."""

    def step(self, chunk: ActionChunk) -> StepResult:
        result = super().step(chunk)
        return replace(result, observation=result.final_observation)


class BothEnds(Point):
    def step(self, chunk: ActionChunk) -> StepResult:
        result = super().step(chunk)
        return replace(result, truncated=result.terminated | result.truncated)


class TruncatesFailures(Point):
    def step(self, chunk: ActionChunk) -> StepResult:
        result = super().step(chunk)
        return replace(
            result, truncated=result.terminated | result.truncated, terminated=torch.zeros_like(result.terminated)
        )


class PaysForTheRest(Point):
    """Pays for actions that were dropped."""

    def step(self, chunk: ActionChunk) -> StepResult:
        result = super().step(chunk)
        return replace(result, rewards=torch.where(result.mask, result.rewards, torch.ones_like(result.rewards)))


class MasksTooMuch(Point):
    def step(self, chunk: ActionChunk) -> StepResult:
        result = super().step(chunk)
        return replace(result, mask=torch.ones_like(result.mask))


class BusyWhenIdle(Point):
    def step(self, chunk: ActionChunk) -> StepResult:
        idle = torch.from_numpy(self.episode_seeds < 0)
        result = super().step(chunk)
        return replace(result, executed=torch.where(idle, torch.ones_like(result.executed), result.executed))


class PlaysNan(Point):
    def step(self, chunk: ActionChunk) -> StepResult:
        return super().step(replace(chunk, actions=torch.nan_to_num(chunk.actions)))


class CrashesOnWrongSizes(Point):
    def _checked_actions(self, chunk: ActionChunk, running: np.ndarray) -> torch.Tensor:
        if chunk.actions.shape[-1] != 2:
            raise IndexError("index 2 is out of bounds")
        return super()._checked_actions(chunk, running)


class StepsWithoutReset(Point):
    def step(self, chunk: ActionChunk) -> StepResult:
        if not self._stack:
            super().reset([0])
        return super().step(chunk)


class FailureIsSuccess(Point):
    """Says success whenever it says terminated, although some ends are failures."""

    def step(self, chunk: ActionChunk) -> StepResult:
        result = super().step(chunk)
        return replace(result, success=result.terminated)


class ClockOfTheProcess(Point):
    """Time goes on over episodes."""

    def _observation(self) -> Observation:
        observation = super()._observation()
        return replace(observation, time=observation.time + 5.0)


class FrozenClock(Point):
    def _observation(self) -> Observation:
        observation = super()._observation()
        return replace(observation, time=torch.zeros_like(observation.time))


class WrongKey(Point):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.spec = replace(self.spec, observation={"proprio": self.spec.observation["proprio"]})


class WrongShape(Point):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        state = replace(self.spec.observation["state"], shape=(5,), low=None, high=None)
        self.spec = replace(self.spec, observation={**self.spec.observation, "state": state})


class WrongLimit(Point):
    """Promises a longer time limit than it keeps."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.promised = replace(self.spec, max_episode_steps=LIMIT + 3)

    def __getattribute__(self, name: str) -> Any:
        outside = name == "spec" and "promised" in super().__getattribute__("__dict__")
        if outside and not super().__getattribute__("__dict__").get("inside"):
            return super().__getattribute__("promised")
        return super().__getattribute__(name)

    def step(self, chunk: ActionChunk) -> StepResult:
        self.inside = True
        try:
            return super().step(chunk)
        finally:
            self.inside = False


class NumpyProtocol(Point):
    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"gravity": np.float32(9.81)}


class OneEnvTooFew(Point):
    def __init__(self, num_envs: int) -> None:
        super().__init__(max(1, num_envs - 1))


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (AliasedFrames, "copies"),
        (OwnSeedArray, "copies"),
        (IgnoresSeeds, "reset_determinism"),
        (DropsTheLastSeed, "seed_queue"),
        (NeverIdle, "seed_queue"),
        (DependsOnTheSlot, "seed_queue"),
        (FinalIsNext, "final_observation"),
        (ObservationIsFinal, "final_observation"),
        (BothEnds, "episode_ends"),
        (TruncatesFailures, "episode_ends"),
        (WrongLimit, "episode_ends"),
        (PaysForTheRest, "dropped_rest"),
        (MasksTooMuch, "dropped_rest"),
        (BusyWhenIdle, "idle_envs"),
        (PlaysNan, "bad_actions"),
        (StepsWithoutReset, "step_before_reset"),
        (FailureIsSuccess, "success_flags"),
        (ClockOfTheProcess, "time_passes"),
        (FrozenClock, "time_passes"),
        (WrongKey, "observation_matches_spec"),
        (WrongShape, "observation_matches_spec"),
        (NumpyProtocol, "protocol_is_json"),
        (OneEnvTooFew, "contract"),
    ],
)
def test_broken_env_is_caught_by_name(broken, caught_by):
    assert caught_by in ENV_CHECKS
    assert caught_by in env_errors(broken)


@pytest.mark.parametrize(("broken", "caught_by"), [(SharesPhysics, "seed_queue"), (CrashesOnWrongSizes, "bad_actions")])
def test_doubtful_env_is_warned_about(broken, caught_by):
    findings = check_env(broken, num_episodes=EPISODES)
    assert caught_by in names(findings, Severity.warning)
    assert names(findings) == set()


def test_env_that_crashes_skips_what_needs_a_play():
    class Crashes(Point):
        def step(self, chunk: ActionChunk) -> StepResult:
            raise ZeroDivisionError("physics exploded")

    findings = check_env(Crashes)
    (play,) = [finding for finding in findings if finding.check == "play"]
    assert (play.severity, play.got) == (Severity.error, "ZeroDivisionError: physics exploded")
    assert "test_checks.py" in play.where
    assert {"seed_queue", "idle_envs", "time_passes"} <= names(findings, Severity.skipped)


@pytest.mark.parametrize(("limit", "length"), [(1, 4), (8, 5), (10, 4), (20, 6), (50, 4), (60, 7)])
def test_chunks_never_divide_the_time_limit(limit, length):
    assert chunk_length(limit) == length


def test_runner_keeps_three_findings_and_survives_crashes():
    def many():
        for index in range(9):
            yield error(f"place {index}", expected="a", got="b", fix="c")

    def crash():
        yield error("first", expected="a", got="b", fix="c")
        raise KeyError("lost")

    found = run_checks({"many": many, "crash": crash})
    assert [(f.check, f.where) for f in found[:4]] == [("many", f"place {i}") for i in range(3)] + [("crash", "first")]
    assert found[4].got == "KeyError: 'lost'"
    assert json.dumps(found[4].to_json())


# Policies ------------------------------------------------------------------------------------------------------------

SPEC = Point(1).spec
DRAWS, HORIZON, SIZE = 1, 4, 2


@dataclass(frozen=True)
class LinearConfig:
    """Configuration of Linear."""

    history: int = 2

    def to_json(self) -> dict[str, Any]:
        return {"history": self.history}


class Linear(nn.Module):
    """tanh(W state + noise): a policy that keeps every rule. Each subclass breaks one."""

    device = torch.device("cpu")
    noise_shape = (DRAWS, HORIZON, SIZE)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, HORIZON * SIZE)

    def mean(self, observation: Observation) -> torch.Tensor:
        return self.layer(observation.state.flatten(1)).view(-1, HORIZON, SIZE)

    def act(self, observation: Observation, noise: torch.Tensor) -> ActionChunk:
        return ActionChunk(torch.tanh(self.mean(observation) + noise[:, 0]), execute=2)

    def reset(self, mask: np.ndarray) -> None:
        pass


class KeepsState(Linear):
    """Averages with the last chunk of each env, and resets properly."""

    def __init__(self) -> None:
        super().__init__()
        self.last: torch.Tensor | None = None

    def act(self, observation: Observation, noise: torch.Tensor) -> ActionChunk:
        new = super().act(observation, noise).actions
        fresh = torch.zeros_like(new) if self.last is None or len(self.last) != len(new) else self.last
        self.last = new
        return ActionChunk((new + fresh) / 2, execute=2)

    def reset(self, mask: np.ndarray) -> None:
        if self.last is not None and len(self.last) == len(mask):
            self.last = torch.where(torch.from_numpy(mask)[:, None, None], torch.zeros(()), self.last)


class NeverForgets(KeepsState):
    def reset(self, mask: np.ndarray) -> None:
        if mask.all():
            self.last = None


class ForgetsAll(KeepsState):
    def reset(self, mask: np.ndarray) -> None:
        self.last = None


class OwnRandomness(Linear):
    def act(self, observation: Observation, noise: torch.Tensor) -> ActionChunk:
        return super().act(observation, torch.randn(noise.shape))


class IgnoresNoise(Linear):
    def act(self, observation: Observation, noise: torch.Tensor) -> ActionChunk:
        return super().act(observation, torch.zeros_like(noise))


class BatchStatistics(Linear):
    def mean(self, observation: Observation) -> torch.Tensor:
        mean = super().mean(observation)
        return mean - mean.mean(dim=0)


class WrongHorizon(Linear):
    def act(self, observation: Observation, noise: torch.Tensor) -> ActionChunk:
        return ActionChunk(super().act(observation, noise).actions[:, :-1], execute=2)


class ExecutesTooMuch(Linear):
    def act(self, observation: Observation, noise: torch.Tensor) -> ActionChunk:
        return replace(super().act(observation, noise), execute=HORIZON + 1)


class DividesByZero(Linear):
    def mean(self, observation: Observation) -> torch.Tensor:
        size = observation.state.flatten(1).norm(dim=1)[:, None, None]
        return super().mean(observation) * size / size


class WritesIntoInputs(Linear):
    def mean(self, observation: Observation) -> torch.Tensor:
        observation.state.clamp_(-0.1, 0.1)
        return super().mean(observation)


class Unbounded(Linear):
    def act(self, observation: Observation, noise: torch.Tensor) -> ActionChunk:
        return ActionChunk(10 * super().act(observation, noise).actions, execute=2)


class Dropout(Linear):
    def mean(self, observation: Observation) -> torch.Tensor:
        return super().mean(observation) * (0.5 if self.training else 1.0)


class NoNoiseShape(Linear):
    noise_shape = (DRAWS, HORIZON, SIZE + 1)


class SharedWeights(Linear):
    """Its copy is not a copy: it has other weights."""

    def __deepcopy__(self, memo: dict) -> Linear:
        other = Linear()
        nn.init.zeros_(other.layer.weight)
        return other


class Checkpointed(Linear):
    """Has what a checkpoint needs, and the same signature as our policies."""

    def __init__(self, config: LinearConfig, spec: EnvSpec, normalizer: Any) -> None:
        super().__init__()
        self.config, self.spec, self.normalizer = config, spec, normalizer


class LosesWeights(Checkpointed):
    """Part of what it learned is no parameter and no buffer."""

    def __init__(self, config: LinearConfig, spec: EnvSpec, normalizer: Any) -> None:
        super().__init__(config, spec, normalizer)
        self.bias = 0.0

    def mean(self, observation: Observation) -> torch.Tensor:
        return super().mean(observation) + self.bias


def test_a_good_policy_only_lacks_what_a_checkpoint_needs():
    for policy in (Linear(), KeepsState()):
        findings = check_policy(policy, SPEC, observations=two_observations())
        assert [(f.check, f.severity) for f in findings] == [("save_and_load", Severity.skipped)]


def test_a_policy_without_torch_is_given_numpy():
    class Numpy:
        noise_shape = (0, HORIZON, SIZE)

        def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
            assert type(observation.state) is type(noise) is np.ndarray
            return ActionChunk(np.repeat(np.tanh(observation.state[:, -1:, :SIZE]), HORIZON, axis=1), execute=1)

        def reset(self, mask: np.ndarray) -> None:
            pass

    findings = check_policy(Numpy(), SPEC)
    assert [(f.check, f.severity) for f in findings] == [
        (name, Severity.skipped) for name in ("train_and_eval", "deepcopy", "save_and_load")
    ]


def two_observations() -> tuple[Observation, Observation]:
    env = Point(3)
    return env.reset([0, 1, 2]), env.reset([3, 4, 5])


@pytest.mark.parametrize(
    ("broken", "caught_by", "severity"),
    [
        (NeverForgets, "reset_mask", Severity.error),
        (ForgetsAll, "reset_mask", Severity.error),
        (OwnRandomness, "determinism", Severity.error),
        (IgnoresNoise, "noise_is_used", Severity.warning),
        (BatchStatistics, "batch_independence", Severity.error),
        (WrongHorizon, "chunk", Severity.error),
        (ExecutesTooMuch, "chunk", Severity.error),
        (DividesByZero, "finite_actions", Severity.error),
        (WritesIntoInputs, "inputs_unchanged", Severity.error),
        (Unbounded, "action_bounds", Severity.warning),
        (Dropout, "train_and_eval", Severity.warning),
        (NoNoiseShape, "contract", Severity.error),
        (SharedWeights, "deepcopy", Severity.error),
    ],
)
def test_broken_policy_is_caught_by_name(broken, caught_by, severity):
    assert caught_by in POLICY_CHECKS
    assert caught_by in names(check_policy(broken().eval(), SPEC, observations=two_observations()), severity)


def test_checkpoint_roundtrip(monkeypatch):
    import sys
    from types import ModuleType

    from robot_rl.data.normalizer import Normalizer

    module = ModuleType("users_policies")
    monkeypatch.setitem(sys.modules, "users_policies", module)
    for kind in (Checkpointed, LosesWeights):
        setattr(module, kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", "users_policies")
    normalizer = Normalizer.identity({"action": SIZE})
    good = Checkpointed(LinearConfig(), SPEC, normalizer)
    nn.init.ones_(good.layer.weight)
    assert check_policy(good, SPEC) == []
    bad = LosesWeights(LinearConfig(), SPEC, normalizer)
    bad.bias = 0.3
    assert names(check_policy(bad, SPEC)) == {"save_and_load"}


# The command ---------------------------------------------------------------------------------------------------------


def test_command_on_our_env(capsys):
    assert check.main(["env", "env=point_reach", "env.max_episode_steps=7"]) == 0
    text = capsys.readouterr().out
    assert text.endswith(f"{len(ENV_CHECKS)} checks: 0 error, 0 warning, 0 skipped\n")


@pytest.mark.parametrize("policy", ["mlp", "unet"])
def test_command_on_our_untrained_policies(policy, capsys):
    assert check.main(["policy", f"policy={policy}", "env=point_reach", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"checks": list(POLICY_CHECKS), "findings": []}


def make_broken_env(config: PointReachConfig, *, num_envs: int, history: int) -> HistoryEnv:
    return BothEnds(num_envs)


def test_command_on_a_users_broken_env(monkeypatch, tmp_path, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "users_envs", sys.modules[__name__])
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine.yaml").write_text("_target_: users_envs.make_broken_env\n")
    (tmp_path / "evaluate.yaml").write_text("defaults:\n  - env: mine\n  - expert: scripted\n  - _self_\n")
    assert check.main(["env", "--config-dir", str(tmp_path), "--num-episodes", str(EPISODES)]) == 1
    text = capsys.readouterr().out
    assert "error    episode_ends" in text
    assert "expected: terminated or truncated" in text


def test_command_wants_a_policy():
    with pytest.raises(ConfigError, match="policy=<run"):
        check.main(["policy", "env=point_reach"])


def test_command_on_the_env_of_the_docs_page(monkeypatch, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "own_env_and_policy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# my_package/slider.py.*?)```", page, re.DOTALL)
    (tmp_path / "docs_slider.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert check.main(["env", "~env", "+env={_target_: docs_slider.make_env}"]) == 0


def test_docs_page_names_every_check():
    page = (Path(__file__).parents[1] / "docs" / "own_env_and_policy.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\w+) \|", page, re.MULTILINE) == ["check", *ENV_CHECKS, "check", *POLICY_CHECKS]
