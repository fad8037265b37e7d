"""judge sabotage: each sabotage breaks what it names and nothing else, the tally by hand, and a small study."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robot_rl.algorithms.iql import advantage
from robot_rl.algorithms.ope import GateConfig, GateRule
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import ConfigError, RunError
from robot_rl.fitting.proposals import Method
from robot_rl.fitting.round_data import RoundFits, fit_round
from robot_rl.workbench import judge, judge_sabotage
from robot_rl.workbench.judge_breaks import FlippedCritic, Sabotage, foreign, sabotage, shuffled, under
from robot_rl.workbench.judge_play import against
from robot_rl.workbench.results import section

WORDS = [
    "env.max_episode_steps=12", "expert=point_reach", "expert.noise_sd=0.3", "num_episodes=20", "policy.hidden_width=32",
    "policy.execute=2", "policy.horizon=4", "policy.num_steps=3", "train.num_steps=60", "train.batch_size=32",
    "train.log_every_steps=60", "critic.hidden_width=16", "critic_fit.num_steps=60", "critic_fit.check_every_steps=20",
    "dynamics.hidden_width=16", "dynamics.num_members=2", "model_fit.num_steps=40", "judge.fqe_bootstrap=20",
    "judge.num_starts=10", "imitation.train.num_steps=20", "imitation.train.batch_size=32", "ppo.num_states=16",
    "ppo.group=4", "ppo.batch_size=64", "ppo.iterations=1",
]  # fmt: skip
ACCEPTING = GateConfig(
    rule=GateRule.margin, relative_margin=0.0, absolute_margin=-10.0, deciding=("fqe",), max_kl=None,
    max_disagreement_ratio=None, max_q_gap=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> judge_sabotage.Start:
    """An honest round of the point task; one fit of the judges' critic is not looked at by any test below."""
    torch.set_num_threads(1)
    return judge_sabotage.prepare(["env=point_reach", *WORDS], 0, tmp_path_factory.mktemp("start"))


def broken(kind: Sabotage, start: judge_sabotage.Start) -> Any:
    return sabotage(kind, start.config, start.incumbent, start.data, start.fits, seed=start.seed)


def test_flipped_advantages_are_negated(start: judge_sabotage.Start) -> None:
    rows, honest = start.data.all_rows, start.fits.critic
    flipped = FlippedCritic(honest)
    before = advantage(honest.q(rows.feature, rows.action), honest.value(rows.feature))
    after = advantage(flipped.q(rows.feature, rows.action), flipped.value(rows.feature))
    assert before.std() > 0
    assert torch.equal(after, -before)
    assert flipped.q(rows.feature, rows.action).shape == honest.q(rows.feature, rows.action).shape


def test_shuffled_rewards_keep_the_multiset_but_not_the_order(start: judge_sabotage.Start) -> None:
    rows = start.data.optimizer
    mixed = shuffled(rows, torch.Generator().manual_seed(0))
    for name in ("reward", "return_to_go"):
        before, after = getattr(rows, name), getattr(mixed, name)
        assert not torch.equal(before, after)
        assert torch.equal(before.sort().values, after.sort().values)
    # A reward keeps its own return: both have the same order.
    pairs = [sorted(zip(x.reward.tolist(), x.return_to_go.tolist(), strict=True)) for x in (rows, mixed)]
    assert pairs[0] == pairs[1]
    for field in fields(rows):
        if field.name not in ("reward", "return_to_go"):
            assert getattr(rows, field.name) is getattr(mixed, field.name)


def test_a_foreign_normaliser_by_hand() -> None:
    """x = offset + scale z, so under the foreign one z' = (z - shift) / factor."""
    honest = Normalizer.identity({"state": 3, "action": 2})
    document = honest.to_json()
    document["state"] |= {"offset": [1.0, 2.0, 7.0], "scale": [0.5, 4.0, 0.0], "gain": [2.0, 0.25, 0.0]}
    honest = Normalizer.from_json(document)
    wrong = foreign(honest, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    shift = 0.5 * torch.randn(3, generator=generator)
    factor = (0.5 * torch.randn(3, generator=generator)).exp()
    x = torch.tensor([[1.5, -2.0, 7.0], [0.0, 3.0, 7.0]])
    expected = (honest.apply("state", x) - shift) / factor
    assert torch.allclose(wrong.apply("state", x)[:, :2], expected[:, :2], atol=1e-6)
    assert torch.equal(wrong.apply("state", x)[:, 2], torch.zeros(2))
    assert torch.allclose(wrong.invert("state", wrong.apply("state", x)), x, atol=1e-6)
    assert not torch.allclose(wrong.apply("action", x[:, :2]), honest.apply("action", x[:, :2]), atol=0.05)


def test_wrong_normaliser_is_the_optimisers_alone(start: judge_sabotage.Start) -> None:
    found = broken(Sabotage.wrong_normalizer, start)
    assert torch.equal(found.data.all_rows.episode, start.data.all_rows.episode)
    assert torch.equal(found.data.all_rows.reward, start.data.all_rows.reward)
    assert torch.equal(found.data.judge.episode, start.data.judge.episode)
    assert (found.data.all_rows.feature - start.data.all_rows.feature).abs().mean() > 0.1
    assert (found.data.all_rows.action - start.data.all_rows.action).abs().mean() > 0.1
    other = under(start.incumbent, found.normalizer)
    window = start.data.windows.window(torch.arange(5), with_next=False)
    assert torch.equal(other.encode(window.observation), found.data.all_rows.feature[:5])
    assert torch.equal(start.incumbent.encode(window.observation), start.data.all_rows.feature[:5])
    back = under(other, start.incumbent.normalizer).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in start.incumbent.state_dict().items())
    assert found.fits is start.fits
    assert found.config is start.config


def test_learning_rates_times_100_and_nothing_else(start: judge_sabotage.Start) -> None:
    found, honest = broken(Sabotage.learning_rate_x100, start), start.config
    assert found.config.ppo.learning_rate == pytest.approx(100 * honest.ppo.learning_rate)
    assert found.config.imitation.train.learning_rate == pytest.approx(100 * honest.imitation.train.learning_rate)
    train = replace(found.config.imitation.train, learning_rate=honest.imitation.train.learning_rate)
    ppo = replace(found.config.ppo, learning_rate=honest.ppo.learning_rate)
    assert replace(found.config, ppo=ppo, imitation=replace(found.config.imitation, train=train)) == honest
    assert (found.data, found.fits) == (start.data, start.fits)


def test_shuffled_rewards_make_another_critic(start: judge_sabotage.Start) -> None:
    found = broken(Sabotage.shuffled_rewards, start)
    rows = start.data.optimizer
    assert not torch.equal(
        found.fits.critic.q(rows.feature, rows.action), start.fits.critic.q(rows.feature, rows.action)
    )
    assert found.data is start.data  # imitation and the judges see the true rewards


@pytest.mark.parametrize("kind", list(Sabotage))
def test_no_sabotage_touches_the_judges(kind: Sabotage, start: judge_sabotage.Start) -> None:
    found = broken(kind, start)
    assert found.fits.judge_critic is start.fits.judge_critic
    assert found.fits.judge_model is start.fits.judge_model
    assert (found.fits is not start.fits) == (kind in (Sabotage.flipped_advantages, Sabotage.shuffled_rewards))
    assert found.config.gate == start.config.gate
    assert found.config.gamma == start.config.gamma


def test_against_by_hand() -> None:
    """12 lost and none won of 20: exact McNemar 2 * 0.5^12; 3 lost and 2 won: 1."""
    found = against([False] * 20, [True] * 12 + [False] * 8)
    assert (found["k"], found["incumbent_k"], found["n"]) == (0, 12, 20)
    assert found["difference"] == pytest.approx(-0.6)
    assert found["p_value"] == pytest.approx(2 * 0.5**12)
    assert (found["is_worse"], found["is_better"]) == (True, False)
    assert against([True] * 12 + [False] * 8, [False] * 20)["is_better"]
    mixed = against([True] * 2 + [False] * 18, [False] * 2 + [True] * 3 + [False] * 15)
    assert mixed["difference"] == pytest.approx(-0.05)
    assert mixed["p_value"] == pytest.approx(1.0)
    assert (mixed["is_worse"], mixed["is_better"]) == (False, False)
    assert mixed["low"] < -0.05 < mixed["high"]


def proposal(accepted: bool, difference: float, verdict: str = "") -> dict[str, Any]:
    return {
        "accepted": accepted, "difference": difference, "is_worse": verdict == "worse", "is_better": verdict == "better",
    }  # fmt: skip


def test_tally_by_hand() -> None:
    worse = {"k": 30, "incumbent_k": 50, "n": 100, "is_worse": True, "is_better": False}
    equal = {"k": 60, "incumbent_k": 60, "n": 100, "is_worse": False, "is_better": False}
    runs = [
        {"proposals": [proposal(True, -0.2, "worse"), proposal(False, -0.3, "worse"), proposal(False, 0.1, "better")],
         "kept": worse, "stopped": None},
        {"proposals": [proposal(False, -0.01), proposal(True, 0.2, "better")], "kept": equal, "stopped": "nan"},
    ]  # fmt: skip
    row = judge_sabotage.tally("x", runs)
    shares = {name: (row[name]["k"], row[name]["n"]) for name in row if isinstance(row[name], dict)}
    assert shares == {
        "proposals kept": (2, 5),
        "worse ones rejected": (1, 2),
        "lower ones (any difference) rejected": (2, 3),
        "better ones kept": (1, 2),
    }
    assert (row["runs"], row["stopped by an error"]) == (2, 1)
    assert (row["runs whose kept policy is worse"], row["runs whose kept policy is better"]) == (1, 0)
    assert row["mean success"] == "55.0% to 45.0%"
    text = judge_sabotage.as_text({"rows": [row], "kept_worse": ["x/0"]})
    assert "catch rate: 1/2 over all sabotage" in text
    assert "beyond its interval: x/0" in text
    none = judge_sabotage.tally("y", [{"proposals": [], "kept": equal, "stopped": None}])
    assert none["worse ones rejected"] is None
    assert "beyond its interval: never" in judge_sabotage.as_text({"rows": [none], "kept_worse": []})


def test_the_same_weights_are_played_once(start: judge_sabotage.Start, monkeypatch: pytest.MonkeyPatch) -> None:
    played = []
    monkeypatch.setattr(judge_sabotage, "play", lambda env, policy, seeds, num_envs: played.append(policy) or [True])
    player = judge_sabotage.Player(start.env, [1], num_envs=1)
    assert player(start.incumbent) == player(under(start.incumbent, start.incumbent.normalizer)) == [True]
    assert len(played) == 1
    player(under(start.incumbent, foreign(start.incumbent.normalizer, torch.Generator())))
    assert len(played) == 2


class Scripted(judge_sabotage.Player):
    """The first incumbent wins everywhere, every other policy object nowhere."""

    def __init__(self, first: Any) -> None:
        self.first = first

    def __call__(self, policy: Any) -> list[bool]:
        return [True] * 20 if policy is self.first else [False] * 20


def permissive(start: judge_sabotage.Start, **report: int) -> judge_sabotage.Start:
    """A gate that keeps everything, and another report of the judges' critic."""
    judged = start.fits.report["judge_critic"] | report
    fits = replace(start.fits, report=start.fits.report | {"judge_critic": judged})
    config = replace(start.config, gate=ACCEPTING, methods=[Method.merged, Method.ppo])
    return replace(start, config=config, fits=fits)


def test_an_accepted_proposal_is_what_is_kept_and_an_error_keeps_the_first(
    start: judge_sabotage.Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def proposals(
        _config: Any, method: Method, incumbent: Any, *_rest: Any, **_more: Any
    ) -> Iterator[tuple[Any, dict[str, Any]]]:
        if method is Method.ppo and fails:
            raise RunError("PPO", expected="a finite loss", got="nan", hint="none")
        yield incumbent, {"kl_nats": 0.0}

    monkeypatch.setattr(judge_sabotage, "proposals_of", proposals)
    honest = permissive(start, best_step=20)
    for fails in (False, True):
        run = judge_sabotage.one_run(honest, Sabotage.none, Scripted(start.incumbent), place=tmp_path)
        assert [one["accepted"] for one in run["proposals"]] == [True] * (1 if fails else 2)
        assert run["proposals"][0]["is_worse"]
        assert run["kept"]["is_worse"] == (not fails)
        assert (run["stopped"] is None) == (not fails)
    assert "got nan" in run["stopped"]


def test_a_worthless_judge_keeps_nothing(start: judge_sabotage.Start, tmp_path: Path) -> None:
    run = judge_sabotage.one_run(
        permissive(start, best_step=0), Sabotage.none, Scripted(start.incumbent), place=tmp_path
    )
    assert len(run["proposals"]) == 1 + start.config.ppo.proposals
    for one in run["proposals"]:
        assert not one["accepted"]
        assert one["reason"].startswith("rejected: the judges' critic is worthless: on held-out episodes none of ")
    assert run["kept"]["difference"] == 0


def test_a_fit_that_never_beats_the_untrained_critic_is_logged(
    start: judge_sabotage.Start, caplog: pytest.LogCaptureFixture
) -> None:
    def fit(rate: float) -> RoundFits:
        config = start.config
        return fit_round(
            start.data, config.critic, config.dynamics, critic_fit=replace(config.critic_fit, learning_rate=rate),
            model_fit=replace(config.model_fit, num_steps=1), seed=0,
        )  # fmt: skip

    with caplog.at_level(logging.WARNING):
        ruined = fit(100.0)
    assert ruined.report["judge_critic"]["best_step"] == 0
    assert ruined.worthless is not None
    assert ruined.worthless in caplog.messages
    assert [text.partition(" critic")[0] for text in caplog.messages] == ["the optimiser's", "the judges'"]


def test_a_small_study(
    start: judge_sabotage.Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared: list[Any] = []
    # The round of the fixture, which `prepare` has made from the same words but for another seed's name.
    monkeypatch.setattr(
        judge_sabotage, "prepare", lambda words, seed, folder: prepared.append((words, seed, folder)) or start
    )
    output = tmp_path / "sabotage.json"
    words = ["sabotage", "--env", "point_reach", *WORDS, "--runs", "4", "--seed", "3"]
    words += ["--episodes", "10", "--folder", str(tmp_path / "runs"), "--output", str(output)]
    assert judge.main(words) == 0
    document = json.loads(output.read_text())
    assert [row["sabotage"] for row in document["rows"]] == [*(kind.value for kind in Sabotage), "all sabotage"]
    assert [row["runs"] for row in document["rows"]] == [1, 1, 1, 1, 1, 4]
    assert "catch rate" in capsys.readouterr().out
    assert prepared == [(["env=point_reach", *WORDS], 3, tmp_path / "runs/s3")]
    for run in document["runs"]:
        assert run["stopped"] is None or run["sabotage"] == "learning_rate_x100"
        accepted = [one for one in run["proposals"] if one["accepted"]]
        assert run["kept"]["n"] == 10
        assert run["kept"]["k"] == (accepted[-1]["k"] if accepted else run["kept"]["incumbent_k"])
    honest, flipped = document["runs"][0], document["runs"][1]
    assert [one["method"] for one in honest["proposals"]] == ["success_only", "awr", "ppo", "ppo"]
    # Success-only imitation asks no critic.
    assert honest["proposals"][0] == flipped["proposals"][0]
    assert honest["proposals"][1]["gains"] != flipped["proposals"][1]["gains"]
    text = "\n".join(section(output))
    assert "## Sabotaged optimisers in front of the gate (point_reach, mode eta1)" in text
    assert "runs 3-3; evaluation 900000-900009" in text
    assert judge.main(words) == 0  # nothing is run again
    assert json.loads(output.read_text()) == document
    assert len(prepared) == 1


def test_another_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="--engine"):
        judge.main(["sabotage", "--env", "point_reach", "--runs", "4", "--engine", "ray"])


@pytest.mark.parametrize("words", [["--runs", "5"], ["--runs", "0"], ["runs/some_run"]])
def test_wrong_words(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        judge.main(["sabotage", "--env", "point_reach", *words])
