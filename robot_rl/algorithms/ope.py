"""Off-policy judges and the gate: is a candidate better than the incumbent, by data alone?

Scores are (M, S): M members of a judge (models or critics) by S start states, the same for both policies, with the
same noise (P13). The gate wants a gain, no contradiction between judges, and a candidate that stays near the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import torch

from robot_rl.arrays import Array, Bool, Float, Float32, Float64
from robot_rl.errors import DataError, closest
from robot_rl.types import GateDecision, OpeEstimate


class AmQRule(str, Enum):
    """How Q along a roll-out becomes one score (RL-100, eq. 9, is `sum`; the released code takes the mean).

    sum: over the decisions made. Where Q is positive and the task ends with success, it punishes quick success.
    mean: over the decisions made.
    hold: a mean over all H decisions in which an ended roll-out keeps its last Q.
    """

    sum = "sum"
    mean = "mean"
    hold = "hold"


class GateRule(str, Enum):
    """What counts as a gain.

    margin: the difference is at least relative_margin x |incumbent|, and at least absolute_margin.
    lower_bound: the interval of the difference lies above zero.
    never: nothing does; proposals are judged and recorded, and the incumbent stays. For controls and calibration.
    """

    margin = "margin"
    lower_bound = "lower_bound"
    never = "never"


@dataclass(frozen=True)
class GateConfig:
    """The gate.

    Attributes:
        rule: what counts as a gain.
        relative_margin: of |incumbent|; RL-100 takes 0.05.
        absolute_margin: floor of the margin, for incumbents near zero (P13).
        deciding: judges that must all see the gain; empty: all that are given. The others can only object. AM-Q is not
            to decide alone: its Q is that of another policy, so it sees gains between policies of equal value
            (tests/algorithms/test_ope.py has a case in which it always does).
        max_kl: nats per decision between candidate and the policy that the method started from in this round, summed
            over denoising steps; None: not looked at. On PickCube all judges liked policies that PPO had moved by 4 nats
            and that had fallen from 51 to 22 %, and by 1.1 nats, from 145 to 85 of 200; at 0.2 none had fallen
            (docs/offline.md).
        max_disagreement_ratio: the model ensemble's disagreement under the candidate over that under the incumbent.
        max_q_gap: largest `q_gap`.
    """

    rule: GateRule = GateRule.lower_bound
    relative_margin: float = 0.05
    absolute_margin: float = 0.01
    deciding: tuple[str, ...] = ()
    max_kl: float | None = 0.2
    max_disagreement_ratio: float | None = 1.5
    max_q_gap: float | None = 2.0


@dataclass(frozen=True)
class SupportGuards:
    """How far a candidate is from the data and from where its method started. None: not measured.

    Attributes:
        kl: nats per decision, KL from the policy that the method started from to the candidate, on states of the data.
        disagreement_ratio: mean disagreement in roll-outs of the candidate over that of the incumbent.
        q_gap: see `q_gap`.
    """

    kl: float | None = None
    disagreement_ratio: float | None = None
    q_gap: float | None = None


@dataclass(frozen=True)
class GateCheck:
    """One check of the gate, and the sentence that a report shows."""

    name: str
    passed: bool
    text: str


def am_q(q: Float[Array, "H ..."], alive: Bool[Array, "H ..."], *, rule: AmQRule) -> Float[Array, "..."]:
    """AM-Q of every roll-out: Q(s_t, a_t) along a roll-out in the model (RL-100, eq. 9), for decisions that were made.

    Args:
        q: of a critic that was not optimised against; anything where not alive.
        alive: False behind a predicted termination. True in the first row.
        rule: see AmQRule.
    """
    counted = torch.where(alive, q, 0.0)
    if rule is AmQRule.sum:
        return counted.sum(0)
    made = alive.sum(0)
    if rule is AmQRule.mean:
        return counted.sum(0) / made.clamp(min=1)
    last = counted.gather(0, (made - 1).clamp(min=0)[None])[0]
    return (counted.sum(0) + last * (len(q) - made)) / len(q)


def model_return(reward: Float[Array, "H ..."], alive: Bool[Array, "H ..."], *, discount: float) -> Float[Array, "..."]:
    """Discounted predicted reward of every roll-out until its predicted termination.

    Args:
        reward: of each decision, discounted inside the decision already.
        alive: False behind a predicted termination.
        discount: between decisions, gamma^Ta (P10).
    """
    powers = discount ** torch.arange(len(reward), dtype=reward.dtype, device=reward.device)
    return torch.einsum("h,h...->...", powers, torch.where(alive, reward, 0.0))


def model_success(terminated: Bool[Array, "H ..."]) -> Float32[Array, "..."]:
    """1 where a termination was predicted within the horizon. Only for tasks that nothing but success ends."""
    return terminated.any(0).float()


def q_gap(q_policy: Float32[Array, "E B"], q_data: Float32[Array, "E B"]) -> float:
    """Mean of min Q(s, policy's action) - min Q(s, data's action), in standard deviations of the latter (P11).

    A large gap means that the critic is asked about actions that it never saw, and likes them.
    """
    data = q_data.amin(0)
    return float((q_policy.amin(0) - data).mean() / data.std(unbiased=False).clamp(min=1e-6))


def crossed_interval(scores: Float64[Array, "M S"], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of M x S scores with an interval that holds for new start states and for new data to fit the members on.

    Starts are independent, so their variance falls with 1/S. Members are bootstrap fits to one dataset: their
    variance estimates that of the fit, which averaging over members does not reduce (Efron 1979); it enters whole,
    plus 1/M for the mean of M draws. Student's t with Satterthwaite's degrees of freedom.

    Args:
        scores: crossed: every start with every member. M = 1 has no member part, and the interval says nothing of
            the judge's own error.
        confidence: two-sided, in (0, 1).

    Returns:
        Mean, low, high.

    Raises:
        DataError: fewer than two starts, or a score that is no finite number.
    """
    members, starts = scores.shape
    if starts < 2 or not bool(torch.isfinite(scores).all()):
        raise DataError(
            "scores of a judge", expected="at least two start states and finite scores",
            got=f"shape {tuple(scores.shape)}, {int((~torch.isfinite(scores)).sum())} not finite",
            hint="Give more start states; look at the critic's and the model's losses.",
        )  # fmt: skip
    centre = float(scores.mean())
    of_starts = float(scores.mean(0).var()) / starts
    of_members = float(scores.mean(1).var()) * (1 + 1 / members) if members > 1 else 0.0
    variance = of_starts + of_members
    if variance == 0:
        return centre, centre, centre
    from scipy.stats import t as student

    freedom = variance**2 / (of_starts**2 / (starts - 1) + of_members**2 / max(members - 1, 1))
    half = float(student.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(variance)
    return centre, centre - half, centre + half


def paired_estimate(
    candidate: Float[Array, "M S"], incumbent: Float[Array, "M S"], *, confidence: float = 0.95
) -> OpeEstimate:
    """Candidate against incumbent on the same starts, noise and members; the interval is that of the difference.

    Args:
        candidate: scores.
        incumbent: scores, in the same order.
        confidence: two-sided. The lower-bound rule is meant to accept a candidate of equal score in at most
            1 - confidence of the cases: nominally half as often, but few members and episodes cost some of that.

    Raises:
        DataError: as `crossed_interval`.
    """
    first, second = candidate.double(), incumbent.double()
    difference, low, high = crossed_interval(first - second, confidence=confidence)
    return OpeEstimate(
        candidate=float(first.mean()), incumbent=float(second.mean()),
        difference=difference, low=low, high=high, start_states=candidate.shape[1],
    )  # fmt: skip


def checks(estimates: Mapping[str, OpeEstimate], guards: SupportGuards, config: GateConfig) -> tuple[GateCheck, ...]:
    """All checks of the gate: a gain in every deciding judge, no judge that objects, every guard within its limit.

    A judge objects when its whole interval lies below zero; with one that sees a gain this is the disagreement that
    rejects. Nothing that is no number passes.

    Raises:
        DataError: no judge, an unknown deciding judge, or a limit whose guard was not measured.
    """
    unknown = [name for name in config.deciding if name not in estimates]
    if unknown or not estimates:
        raise DataError(
            "judges of the gate", expected=f"estimates of {', '.join(config.deciding) or 'at least one judge'}",
            got=", ".join(estimates) or "none", hint=closest(unknown[0], estimates) if unknown else "Give estimates.",
        )  # fmt: skip
    deciding = config.deciding or tuple(estimates)
    out = [_gain(name, estimates[name], config) for name in deciding]
    out += [_objection(name, estimate) for name, estimate in estimates.items()]
    limits = {
        "kl": config.max_kl, "disagreement_ratio": config.max_disagreement_ratio, "q_gap": config.max_q_gap,
    }  # fmt: skip
    return (*out, *(_guard(name, getattr(guards, name), limit) for name, limit in limits.items()))


def decide(estimates: Mapping[str, OpeEstimate], guards: SupportGuards, config: GateConfig) -> GateDecision:
    """Accept when all `checks` pass. The reason names each with its numbers; the estimate is the first deciding judge's.

    Raises:
        DataError: as `checks`.
    """
    found = checks(estimates, guards, config)
    first = (config.deciding or tuple(estimates))[0]
    failed = [check.text for check in found if not check.passed]
    passed = [check.text for check in found if check.passed]
    parts = [f"rejected: {'; '.join(failed)}" if failed else "accepted"]
    parts += [f"passed: {'; '.join(passed)}"] if passed else []
    return GateDecision(estimate=estimates[first], accepted=not failed, reason=". ".join(parts))


def decision_record(
    decision: GateDecision, estimates: Mapping[str, OpeEstimate], guards: SupportGuards, config: GateConfig
) -> dict[str, Any]:
    """A line of ope/decisions.jsonl: decision, reason, every estimate, guard, check and limit, in JSON types."""
    return {
        "accepted": decision.accepted,
        "reason": decision.reason,
        "estimates": {name: asdict(estimate) for name, estimate in estimates.items()},
        "guards": asdict(guards),
        "checks": [asdict(check) for check in checks(estimates, guards, config)],
        "config": asdict(config) | {"rule": config.rule.value, "deciding": list(config.deciding)},
    }


def _gain(name: str, estimate: OpeEstimate, config: GateConfig) -> GateCheck:
    if config.rule is GateRule.never:
        passed, rule = False, "nothing (rule never)"
    elif config.rule is GateRule.margin:
        needed = max(config.relative_margin * abs(estimate.incumbent), config.absolute_margin)
        passed, rule = estimate.difference >= needed, f"margin {needed:.4g}"
    else:
        passed, rule = estimate.low > 0, "lower bound above 0"
    text = f"{name} {estimate.candidate:.4g} against {estimate.incumbent:.4g}: {_shown(estimate)}, wanted {rule}"
    return GateCheck(f"gain/{name}", passed, text)


def _objection(name: str, estimate: OpeEstimate) -> GateCheck:
    passed = estimate.high >= 0
    says = "does not object" if passed else "objects (judges disagree unless all see a loss)"
    return GateCheck(f"objection/{name}", passed, f"{name} {says}: {_shown(estimate)}")


def _shown(estimate: OpeEstimate) -> str:
    return f"difference {estimate.difference:+.4g} [{estimate.low:+.4g}, {estimate.high:+.4g}]"


def _guard(name: str, value: float | None, limit: float | None) -> GateCheck:
    if limit is None:
        return GateCheck(
            f"guard/{name}", True, f"{name} {'not measured' if value is None else f'{value:.4g}'}, no limit"
        )
    if value is None:
        raise DataError(
            f"gate guard {name}", expected=f"a measurement, for the limit is {limit}", got="none",
            hint=f"Measure it, or set max_{name}=null to do without.",
        )  # fmt: skip
    return GateCheck(f"guard/{name}", value <= limit, f"{name} {value:.4g}, limit {limit:.4g}")
