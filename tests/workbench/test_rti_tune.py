"""`robot-rl rti tune`: the rule on rows made by hand, and a whole study of an untrained policy on the point task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.algorithms.diffusion import (
    Prediction,
    Sampler,
    SamplingMode,
    alpha_bar_at,
    reverse_step,
    step_coefficients,
)
from robot_rl.algorithms.warm_start import UNMEASURED_JUMP, WarmStart
from robot_rl.data.normalizer import Normalizer
from robot_rl.envs.point_reach import PointReach, PointReachConfig
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.onestep import OneStepPolicy
from robot_rl.runs.checkpoint import save_checkpoint
from robot_rl.runs.rti_verdict import as_measured, warning_of
from robot_rl.workbench import rti
from robot_rl.workbench.rti_settings import as_short_ddim, reference_of, settings_beside
from robot_rl.workbench.rti_trial import distance, play


def saved(folder: Path, policy: Any, target: str) -> Path:
    node = {"_target_": target, "config": policy.config.to_json()}
    documents = {"policy": node, "spec": policy.spec.to_json(), "normalizer": policy.normalizer.to_json()}
    folder.mkdir()
    return save_checkpoint(folder, step=1, tensors={"policy": policy.state_dict()}, documents=documents)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A diffusion policy and a one-step head of it, both untrained."""
    torch.manual_seed(0)
    spec = PointReach(PointReachConfig(), num_envs=1).spec
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    config = DiffusionPolicyConfig(horizon=4, execute=2, hidden_width=16, level_embedding=8)
    policy = DiffusionPolicy(config, spec, Normalizer.identity(sizes))
    place = tmp_path_factory.mktemp("rti")
    diffusion = saved(place / "diffusion", policy, "robot_rl.policies.diffusion.DiffusionPolicy")
    head = saved(place / "head", policy.one_step_student(), "robot_rl.policies.onestep.OneStepPolicy")
    assert isinstance(policy.one_step_student(), OneStepPolicy)
    return diffusion, head


def row(name: str, kind: str, forwards: int, k: int, low: float) -> dict[str, Any]:
    return {"setting": name, "kind": kind, "warm forwards": forwards, "k": k, "low": low, "success once": f"{k}/100"}


def test_the_rule_wants_the_interval_above_the_margin_and_few_forwards() -> None:
    rows = [
        row("own sampler", "full", 10, 90, 0.0),
        row("four", "rti", 4, 95, 0.0),  # too many forwards
        row("wide", "rti", 2, 94, -0.051),  # more successes, but its interval reaches below -5 points
        row("head", "one", 1, 96, 0.0),  # no RTI
        row("three", "rti", 3, 91, -0.02),
        row("two", "rti", 2, 91, -0.049),
        row("plain", "plain", 2, 92, -0.03),
        row("clean", "clean", 2, 93, -0.04),
    ]
    assert rti.choose(rows) == "clean"
    assert rti.choose(rows[:7]) == "plain"
    assert rti.choose(rows[:6]) == "two"
    assert rti.choose(rows[:5]) == "three"
    assert rti.choose(rows[:4]) is None


def test_the_verdict_is_beside_the_best_ddim_with_few_forwards() -> None:
    rows = [row("two", "rti", 2, 91, -0.01), row("spread", "ddim", 2, 15, -0.6), row("leading", "ddim", 2, 43, -0.5)]
    rows += [row("five", "ddim", 5, 99, 0.0)]
    assert rti._verdict(rows, "two").endswith("91/100; the best DDIM with as few: 43/100 (leading).")
    assert rti._verdict([*rows, row("three", "ddim", 3, 95, 0.0)], "two").endswith("95/100 (three).")
    assert rti._verdict(rows[:1], "two").endswith("91/100.")


def test_a_study_writes_what_it_measured_and_the_verdict_is_told(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    run, head = checkpoints
    output = run / "rti.json"
    words = ["tune", str(run), "--env", "point_reach", "env.max_episode_steps=20", "--episodes", "4", "--levels", "21",
             "--forwards", "1,2", "--one-step", str(head), "--num-envs", "2"]  # fmt: skip
    assert "nobody has measured" in str(warning_of(str(run)))
    assert rti.main(words) == 0
    document = json.loads(output.read_text())
    rows = {entry["setting"]: entry for entry in document["rows"]}
    assert list(rows) == [
        "own sampler", "DDIM, 5 steps", "DDIM, 5 steps, leading levels", "DDIM, 2 steps", "DDIM, 2 steps, leading levels",
        "DDIM, 1 steps", "DDIM, 1 steps, leading levels", "RTI, level 21, 1 steps", "RTI, level 21, 1 steps, clean start",
        "RTI, level 21, 2 steps", "RTI, level 21, 2 steps, clean start", "one-step head",
    ]  # fmt: skip
    # 4 episodes of 10 decisions: 1 in full (10 forwards), the others warm; jumps alone may add full ones.
    assert rows["own sampler"]["forwards"] == 10
    assert rows["one-step head"]["forwards"] == 1
    assert 1 + 9 * 0.1 <= rows["RTI, level 21, 1 steps"]["forwards"] < 4
    assert rows["own sampler"]["distance"] == 0 < rows["DDIM, 1 steps"]["distance"]
    assert rows["RTI, level 21, 1 steps"]["contraction"] is not None
    assert rows["own sampler"]["contraction"] is None
    assert document["seeds"] == "910000-910003"
    assert output.with_suffix(".png").stat().st_size > 5_000
    # Nobody succeeds: a difference of 0 of 4 has an interval far below -5 points, so nothing holds.
    assert document["chosen"] is None
    assert str(output) in str(warning_of(str(run)))
    checkpoint = str(next(run.glob("checkpoints/*"), run))
    for asked, limit in ((WarmStart(level=21), document["max_jump"]), (WarmStart(level=21, max_jump=0.25), 0.25)):
        assert as_measured(checkpoint, asked).jump_limit == limit
    # Nor is another run's file, which lies above this one, its own.
    (run.parent / "rti.json").write_text(json.dumps({"chosen": "x", "max_jump": 9.0}))
    assert as_measured(str(run), WarmStart(level=21)).jump_limit == document["max_jump"]
    assert as_measured(str(head), WarmStart(level=21)).max_jump is None
    (run.parent / "rti.json").unlink()
    (head / "rti.json").write_text(json.dumps({"chosen": "x", "max_jump": 0.0}))
    with pytest.raises(ConfigError, match=r"rti\.json: max_jump.*above 0"):
        as_measured(str(head), WarmStart(level=21))
    (head / "rti.json").unlink()
    untouched = WarmStart(level=21)
    assert as_measured(str(head), untouched) == untouched  # nobody measured on the head
    assert untouched.jump_limit == UNMEASURED_JUMP != document["max_jump"]


def test_the_same_sampler_is_no_distance_away_and_plays_the_same(checkpoints: tuple[Path, Path]) -> None:
    reference = reference_of(str(checkpoints[0]))
    twin = reference_of(str(checkpoints[0]))
    env = {"_target_": "robot_rl.envs.point_reach.make_env", "max_episode_steps": 20}
    assert distance(reference, twin, env, range(3), num_envs=2) == 0.0
    first, second = (play(setting, env, range(3), num_envs=n) for setting, n in ((reference, 2), (twin, 2)))
    assert first.records == second.records
    assert len(first.jumps) == 3 * 9
    assert np.isfinite(first.jumps).all()


def test_ddpm_is_every_level_down_to_the_clean_sample(checkpoints: tuple[Path, Path]) -> None:
    reference = reference_of(str(checkpoints[0]))
    ddpm = settings_beside(reference, levels=[21], forwards=[2], one_step=[], ddpm=True, max_jump=2.0)[0]
    sampler = ddpm.policy.sampler
    assert (ddpm.name, ddpm.forwards) == ("DDPM, 100 steps", 100)
    assert (sampler.levels, sampler.mode.value) == (tuple(range(99, -1, -1)), "eta1")
    last = step_coefficients(sampler)[-1]
    # At level 0 nothing of the latent and no noise is left: its estimate of the clean sample is the action.
    assert (last.next_signal, last.direction, last.std) == pytest.approx((1.0, 0.0, 0.0), abs=1e-5)
    env = {"_target_": "robot_rl.envs.point_reach.make_env", "max_episode_steps": 8}
    assert play(ddpm, env, range(2), num_envs=2).number == 2


def test_short_ddim_begins_where_the_policy_does_and_keeps_the_mean_of_gaussian_data(
    checkpoints: tuple[Path, Path],
) -> None:
    """With the exact denoiser of N(0.5, 0.3^2): from its noisiest level one step ends near the mean, from level 1 at noise."""
    policy = reference_of(str(checkpoints[0])).policy
    wanted = {1: (91,), 2: (91, 1), 3: (91, 46, 1), 5: (91, 69, 46, 23, 1)}
    assert {steps: as_short_ddim(policy, steps).sampler.levels for steps in wanted} == wanted
    assert policy.with_steps(1).sampler.levels == (1,)

    def ends(sampler: Sampler) -> torch.Tensor:
        exact = replace(sampler, prediction=Prediction.sample, clip_sample=None)
        x = torch.randn(20_000, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for step, level in enumerate(exact.levels):
            alpha = alpha_bar_at(level, exact.num_levels)
            gain = alpha**0.5 * 0.09 / (alpha * 0.09 + 1 - alpha)
            x = reverse_step(exact, x, 0.5 + gain * (x - alpha**0.5 * 0.5), step)[0]
        return x

    short, leading = as_short_ddim(policy, 1).sampler, replace(policy.with_steps(1).sampler, mode=SamplingMode.eta0)
    assert ends(short).mean().item() == pytest.approx(0.5, abs=0.02)
    assert ends(leading).mean().item() == pytest.approx(0.0, abs=0.05)
    for steps in (2, 3, 5):
        assert ends(as_short_ddim(policy, steps).sampler).mean().item() == pytest.approx(0.5, abs=0.02)


def test_where_nothing_is_watched_the_jump_is_the_default() -> None:
    assert rti.measured_jump(np.zeros(2)) == rti.measured_jump(np.zeros(0)) == UNMEASURED_JUMP
    assert rti.measured_jump(np.arange(101.0)) == 99.0


def test_wrong_words_are_refused(checkpoints: tuple[Path, Path]) -> None:
    run, head = checkpoints
    reference = reference_of(str(run))
    with pytest.raises(ConfigError, match="below 91"):
        settings_beside(reference, levels=[91, 95], forwards=[1], one_step=[], ddpm=False, max_jump=2.0)
    with pytest.raises(PolicyError, match="one-step head has none"):
        reference_of(str(head))
    with pytest.raises(ConfigError, match="whole numbers"):
        rti.main(["tune", str(run), "--env", "point_reach", "--levels", "a", "--episodes", "1"])
