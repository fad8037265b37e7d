"""Teacher guidance: what a student of PPO is told by a teacher, one pure function an option.

The student is a Gaussian N(m, diag s^2) over one normalised action in [-1, 1], neither m nor the teacher's action a_T
clipped further. Every option gives a loss that is added, times `weight_at`, to PPO's. Only rows that the teacher was
asked about count, so asking about fewer envs changes the noise of the term and not its strength. d is the action size,
A the advantage as the ratio loss has it, a the action that was played, m_o and s_o the actor that played it.

Sources: RPD is arXiv 2503.05833 with its code; the others are known to us by their abstracts, and where an abstract
leaves a formula open, the function says what is ours. docs/teachers.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.errors import ConfigError

Term = tuple[torch.Tensor, torch.Tensor]


class Guidance(str, Enum):
    """Which function of this module is the teacher term."""

    rpd = "rpd"
    annealed = "annealed"
    gated = "gated"
    rlad = "rlad"
    adpo = "adpo"
    g_opd = "g_opd"
    ampo = "ampo"
    kepo = "kepo"
    distil = "distil"
    redi = "redi"


@dataclass(frozen=True)
class GuidanceConfig:
    """The teacher term and its weight.

    Attributes:
        option: see Guidance.
        weight: at the start; 0 is plain PPO, and the teacher is never asked.
        anneal_steps: env steps at which a half cosine has taken the weight to exactly 0; 0: constant.
        final_learning_rate: of the student when the weight is 0, lowered to it with the weight; null: it stays, as one
            that is lower already does.
        final_kl_stop: of PPO, likewise.
        gate_z: gated: the teacher's direction must gain by so many standard errors over the roll-out. A liar passes 3 of them in
            1 of 740 roll-outs, so seldom once in a run of hundreds; 1.64 let it in 1 of 20 times, and one is enough to do harm.
        teacher_std: rlad, g_opd: s_T, standard deviation that a teacher without a density is given, normalised.
        reference_std: g_opd: s_R, of the reference.
        mixture: rlad: share of the teacher in the mixture, 0 to 1.
        clip: rlad: of the ratio.
        temperature: adpo: tau.
        teacher_score: adpo: advantage (scaled) that the teacher's action is taken to have.
        extrapolation: g_opd: lambda; above 1 passes the teacher.
        quantile: kepo: of the returns of a roll-out, below which nothing is distilled.
        fail_window: ampo: last episodes of an env that must all have failed.
        negative: redi: weight of the teacher's failures, 0 to 1.
        negative_reach: redi: standard deviations (root mean square) beyond which a failure no longer pushes.
        trace_batch: redi: steps of the teacher's own episodes a minibatch.
    """

    option: Guidance = Guidance.rpd
    weight: float = 1.0
    anneal_steps: int = 0
    final_learning_rate: float | None = None
    final_kl_stop: float | None = None
    gate_z: float = 3.0
    teacher_std: float = 0.2
    reference_std: float = 0.2
    mixture: float = 0.5
    clip: float = 0.2
    temperature: float = 1.0
    teacher_score: float = 0.0
    extrapolation: float = 1.25
    quantile: float = 0.5
    fail_window: int = 4
    negative: float = 0.5
    negative_reach: float = 3.0
    trace_batch: int = 256

    def validate(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: naming the field.
        """
        annealed = self.option is not Guidance.annealed or self.anneal_steps > 0
        factor = self.extrapolation
        precision = (1 - factor) * self.teacher_std**2 + factor * self.reference_std**2  # its sign
        extrapolates = self.option is not Guidance.g_opd or precision > 0
        finals = (self.final_learning_rate, self.final_kl_stop)
        is_final = [value is None or 0 < value < math.inf for value in finals]
        checks = {
            "weight": (0 <= self.weight < math.inf, "a finite number of 0 or more"),
            "anneal_steps": (self.anneal_steps >= 0 and annealed, "0 or more; more than 0 with option=annealed"),
            "final_learning_rate": (is_final[0], "above 0, or null"),
            "final_kl_stop": (is_final[1], "above 0, or null"),
            "teacher_std": (self.teacher_std > 0, "above 0"),
            "reference_std": (self.reference_std > 0, "above 0"),
            "mixture": (0 <= self.mixture <= 1, "0..1"),
            "clip": (self.clip > 0, "above 0"),
            "temperature": (self.temperature > 0, "above 0"),
            "extrapolation": (extrapolates, "(1 - lambda) / reference_std^2 + lambda / teacher_std^2 above 0"),
            "quantile": (0 <= self.quantile < 1, "0 up to below 1"),
            "fail_window": (self.fail_window >= 1, "1 or more"),
            "negative": (0 <= self.negative < 1, "0 up to below 1"),
            "negative_reach": (self.negative_reach > 0, "above 0"),
            "trace_batch": (self.trace_batch >= 1, "1 or more"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ConfigError(
                    f"guidance.{name}", expected=expected, got=repr(getattr(self, name)), hint="See docs/teachers.md."
                )


def weight_at(config: GuidanceConfig, env_steps: int) -> float:
    """Weight of the teacher term: weight (1 + cos(pi t / T)) / 2 before T = anneal_steps, exactly 0 from T on (RPD's code)."""
    return config.weight * _share_at(config, env_steps)


def _share_at(config: GuidanceConfig, env_steps: int) -> float:
    """How much of the weight is left: a half cosine from 1 to exactly 0, or 1 where nothing is annealed."""
    if config.anneal_steps == 0:
        return 1.0
    gone = min(env_steps / config.anneal_steps, 1.0)
    return 0.0 if gone == 1.0 else 0.5 * (1 + math.cos(math.pi * gone))


def lowered(start: float, end: float | None, *, share: float) -> float:
    """A learning rate or KL limit that goes from `start` to `end` (null: stays) as the weight's share goes from 1 to 0.

    One that is under `end` already stays: a student that is set to be careful must not be sped up on the way.
    On PickCube the weight's way to 0 destroyed the policy at 1e-3 and KL 0.1, and did not at 1e-4 and 0.03 (measured.md,
    part 2).
    """
    if end is None or end >= start:
        return start
    return end + (start - end) * share


@dataclass(frozen=True)
class Pace:
    """How one update goes.

    Attributes:
        weight: of the teacher term.
        learning_rate: of the student.
        kl_stop: of PPO.
    """

    weight: float
    learning_rate: float
    kl_stop: float


def pace_at(
    config: GuidanceConfig, env_steps: int, *, learning_rate: float, kl_stop: float, final_kl_stop: float | None
) -> Pace:
    """Weight, learning rate and KL limit of an update.

    Rate and limit follow the schedule at a weight of 0 too: so `none` with the schedule of `annealed` is its control.

    Args:
        config: of the term.
        env_steps: at its start.
        learning_rate, kl_stop: of the student, at the full weight.
        final_kl_stop: of the student, when the weight is 0; None: it stays.
    """
    weight, share = weight_at(config, env_steps), _share_at(config, env_steps)
    rate = lowered(learning_rate, config.final_learning_rate, share=share)
    return Pace(weight, rate, lowered(kl_stop, final_kl_stop, share=share))


@dataclass(frozen=True)
class GuidanceInputs:
    """What every option may look at, B rows of a minibatch, M teachers.

    Attributes:
        mean: float32 (B, A), m, with gradient; `log_std`: (A,), log s, with gradient.
        old_mean: (B, A), m_o; `old_log_std`: (A,), log s_o.
        action: (B, A), a.
        advantage: (B,), A.
        teacher: (M, B, A), a_T of every teacher; the first is the teacher of all options but ampo.
        asked: bool (M, B), whether a_T is there.
        segment_return: (B,), return of the trajectory the row belongs to (kepo).
        return_floor: quantile of `segment_return` over the whole roll-out (kepo).
        failing: bool (B,), no success in the env's last episodes (ampo).
        reference: (B, A), mean of the reference policy, or None (g_opd).
        trace_mean: (R, A), m where the teacher was in its own episodes, with gradient, or None (redi);
            `trace_action`: (R, A), what it did there; `trace_success`: bool (R,), whether that episode succeeded.
    """

    mean: Float32[Array, "B A"]
    log_std: Float32[Array, " A"]
    old_mean: Float32[Array, "B A"]
    old_log_std: Float32[Array, " A"]
    action: Float32[Array, "B A"]
    advantage: Float32[Array, " B"]
    teacher: Float32[Array, "M B A"]
    asked: Bool[Array, "M B"]
    segment_return: Float32[Array, " B"]
    return_floor: float
    failing: Bool[Array, " B"]
    reference: Float32[Array, "B A"] | None = None
    trace_mean: Float32[Array, "R A"] | None = None
    trace_action: Float32[Array, "R A"] | None = None
    trace_success: Bool[Array, " R"] | None = None


def log_density(x: Float32[Array, "*B A"], mean: Float32[Array, "*B A"], log_std: Float32[Array, " A"]) -> torch.Tensor:
    """log N(x; mean, diag exp(log_std)^2), summed over the action, (*B,)."""
    scaled = (x - mean) / log_std.exp()
    out: torch.Tensor = (-0.5 * scaled.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    return out


def _over_asked(value: torch.Tensor, asked: torch.Tensor, gate: torch.Tensor | None = None) -> Term:
    """Mean of `value` over the rows that were asked, closed ones as 0, and the share of open ones."""
    counts = asked if gate is None else asked & gate
    number = asked.sum().clamp(min=1)
    return torch.where(counts, value, 0.0).sum() / number, counts.sum() / number


def _squared(x: GuidanceInputs) -> torch.Tensor:
    out: torch.Tensor = (x.teacher[0] - x.mean).square().mean(-1)
    return out


def rpd(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """mean_b |a_T - m|^2 / d. RPD's MSE (arXiv 2503.05833, code); the gradient is 2 (m - a_T) / (B d) and s gets none."""
    return _over_asked(_squared(x), x.asked[0])


def teacher_gain(x: GuidanceInputs) -> torch.Tensor:
    """A <(a - m_o) / s_o^2, a_T - m_o>, (B,), without gradient.

    Its mean is the score-function estimate of how the objective changes as m moves towards a_T.
    """
    with torch.no_grad():
        score = (x.action - x.old_mean) / (2 * x.old_log_std).exp()
        out: torch.Tensor = x.advantage * (score * (x.teacher[0] - x.old_mean)).sum(-1)
    return out


def helps(gain: Float32[Array, " B"], *, z: float) -> bool:
    """Whether the mean of `teacher_gain` lies more than z standard errors above 0."""
    if len(gain) < 2:
        return False
    return float(gain.mean()) > z * float(gain.std()) / math.sqrt(len(gain))


def gated(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """rpd where `teacher_gain` > 0: where the step played says that going towards the teacher pays.

    A row alone is nearly noise, and half of a random teacher's rows pass: whoever calls this also leaves the whole term
    out of a roll-out in which `helps` is False. Both are our reading of "only where the advantage of the teacher's
    direction is positive".
    """
    return _over_asked(_squared(x), x.asked[0], teacher_gain(x) > 0)


def rlad(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """-mean min(r A, clip(r, 1 +- e) A), r = pi(a) / q(a), q = (1 - c) pi_o(a) + c N(a; a_T, s_T^2) (RLAD, TRRD).

    PPO's clipped ratio with q in place of the old policy: no push up where a is likelier than under the teacher already,
    none down where the teacher would not have gone. The abstract leaves the mixture open; the arithmetic one is ours.
    """
    new, old = log_density(x.action, x.mean, x.log_std), log_density(x.action, x.old_mean, x.old_log_std)
    spread = torch.full_like(x.log_std, math.log(config.teacher_std))
    teacher = log_density(x.action, x.teacher[0], spread)
    share = torch.tensor([1 - config.mixture, config.mixture], dtype=new.dtype, device=new.device).log()
    anchor = torch.logaddexp(old + share[0], teacher + share[1]).detach()
    ratio = (new - anchor).exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    return _over_asked(-torch.minimum(ratio * x.advantage, clipped * x.advantage), x.asked[0])


def adpo(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """mean KL(q || p), p = softmax((log pi - log pi_o) / tau) over the candidates {a, a_T} (ADPO, anchor: the old policy).

    q = softmax((A, c)), c = teacher_score: the teacher wins where a was worse than c. The optimum is pi ~ pi_o q^tau.
    Candidates and c are ours: the source takes any set and any weights.
    """
    candidates = torch.stack([x.action, x.teacher[0]])
    new = log_density(candidates, x.mean.expand_as(candidates), x.log_std)
    old = log_density(candidates, x.old_mean.expand_as(candidates), x.old_log_std)
    log_p = ((new - old) / config.temperature).log_softmax(0)
    log_q = torch.stack([x.advantage, torch.full_like(x.advantage, config.teacher_score)]).log_softmax(0)
    return _over_asked((log_q.exp() * (log_q - log_p)).sum(0), x.asked[0])


def g_opd(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """mean KL(N(m, s^2) || pi*), pi* ~ pi_R^(1 - l) pi_T^l (G-OPD; l > 1: ExOPD), summed over the action.

    The closed-form optimum of the reward l (log pi_T - log pi_R) under a KL to pi_R. Gaussians: precision
    (1 - l) / s_R^2 + l / s_T^2, and with s_R = s_T the mean m_R + l (a_T - m_R).
    """
    assert x.reference is not None
    factor = config.extrapolation
    weights = (1 - factor) / config.reference_std**2, factor / config.teacher_std**2
    precision = sum(weights)
    target = (weights[0] * x.reference + weights[1] * x.teacher[0]) / precision
    spread = (2 * x.log_std).exp() * precision
    value = 0.5 * ((x.mean - target).square() * precision + spread - 1 - spread.log()).sum(-1)
    return _over_asked(value, x.asked[0])


def ampo(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """mean f |a_T' - m|^2 / d, f = 1 where the env fails, T' the teacher whose action is likeliest under the student (AMPO).

    Several teachers, each heard only on demand. Likeliness is that of one action; AMPO compares whole answers. The mean is
    over all rows, so the term goes away with the failures; where only some of the failing rows were asked, it is theirs
    times the share of failing rows, which is its expectation.
    """
    with torch.no_grad():
        likely = log_density(x.teacher, x.mean.expand_as(x.teacher), x.log_std)
        chosen = torch.where(x.asked, likely, -math.inf).argmax(0)
    picked = x.teacher[chosen, torch.arange(len(chosen), device=chosen.device)]
    share = x.failing.float().mean()
    return _over_asked((picked - x.mean).square().mean(-1), x.asked.any(0) & x.failing)[0] * share, share


def kepo(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """mean w |a_T - m|^2 / d, w = 1 where the trajectory's return is at least the roll-out's quantile (KEPO's quality gate).

    KEPO's other half, hints by which the teacher starts episodes, is not here.
    """
    return _over_asked(_squared(x), x.asked[0], x.segment_return >= x.return_floor)


def distil(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """-mean log pi(a_T) on the student's own states (DistIL: DAgger with forward cross-entropy); it moves s as well."""
    return _over_asked(-log_density(x.teacher[0], x.mean, x.log_std), x.asked[0])


def redi(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """(-sum_good log pi(a_T) + n sum_bad log pi(a_T)) / R over the teacher's own episodes, good and failed, n < 1 (REDI).

    The negative sum has no lower bound, so a failed action more than negative_reach standard deviations away no longer
    pushes (ours). `log_std` gets no gradient: pushing away would widen it without end.
    """
    assert x.trace_mean is not None
    assert x.trace_action is not None
    assert x.trace_success is not None
    likely = log_density(x.trace_action, x.trace_mean, x.log_std.detach())
    distance = ((x.trace_action - x.trace_mean) / x.log_std.exp()).detach().square().mean(-1).sqrt()
    near = ~x.trace_success & (distance <= config.negative_reach)
    factor = torch.where(x.trace_success, -1.0, torch.where(near, config.negative, 0.0))
    return (factor * likely).mean(), (factor != 0).float().mean()


# `annealed` is rpd whose weight must reach 0 (GuidanceConfig.validate); any option may be annealed.
OPTIONS: Mapping[Guidance, Callable[[GuidanceInputs, GuidanceConfig], Term]] = {
    Guidance.rpd: rpd, Guidance.annealed: rpd, Guidance.gated: gated, Guidance.rlad: rlad, Guidance.adpo: adpo,
    Guidance.g_opd: g_opd, Guidance.ampo: ampo, Guidance.kepo: kepo, Guidance.distil: distil, Guidance.redi: redi,
}  # fmt: skip


def guidance_loss(x: GuidanceInputs, config: GuidanceConfig) -> Term:
    """Teacher term of `config.option`, unweighted, and the share of asked rows (ampo: all, redi: traces) that counted."""
    return OPTIONS[config.option](x, config)
