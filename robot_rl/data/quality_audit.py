"""All checks of a dataset, streamed: one episode in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from robot_rl.data.element_names import gripper_elements, names_of
from robot_rl.data.element_statistics import ElementStatistics
from robot_rl.data.quality import Finding, Limits, Place, Severity, delete_command, may_train, worst_first
from robot_rl.data.quality_episodes import (
    EpisodeTrace,
    duplicate_findings,
    seed_findings,
    start_findings,
    success_share_findings,
    trace,
)
from robot_rl.data.quality_images import image_findings, images_of, same_cameras
from robot_rl.data.quality_motion import motion_findings
from robot_rl.data.quality_outcome import idle_findings, outcome_findings, windows_of
from robot_rl.data.quality_response import Response, response_findings
from robot_rl.data.quality_time import achieved_hz, age_findings, camera_ages, is_measured, time_findings
from robot_rl.data.quality_values import (
    at_bound,
    bounds_findings,
    clipping_findings,
    finite_findings,
    spread_findings,
    unit_findings,
    value_arrays,
)
from robot_rl.errors import RobotRlError
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode


@dataclass(frozen=True)
class Quality:
    """What all checks say.

    Attributes:
        findings: worst first.
        facts: counts and measured numbers, JSON types.
        may_train: no finding is an error.
    """

    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]
    may_train: bool

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        found = [finding.to_json() for finding in self.findings]
        return {"may_train": self.may_train, "facts": dict(self.facts), "findings": found}


@dataclass
class Audit:
    """Feed it every episode with `add` (or `damaged`), then ask for the `result`.

    Attributes:
        spec: of the dataset.
        limits: see Limits.
        compared: observations by which episodes are compared with each other, which all of them have; None: all of `spec`.
    """

    spec: EnvSpec
    limits: Limits = field(default_factory=Limits)
    compared: Sequence[str] | None = None

    def __post_init__(self) -> None:
        keys = self.spec.observation if self.compared is None else self.compared
        self._compared = replace(self.spec, observation={key: self.spec.observation[key] for key in keys})
        self._findings: list[Finding] = []
        self._traces: list[EpisodeTrace] = []
        self._numbers: list[int] = []
        self._rates: list[float] = []
        self._at_bound: np.ndarray | None = None
        self._damaged = 0
        self._response = Response(self.spec)
        arrays = {"action": self.spec.action}
        arrays |= {key: array for key, array in self.spec.observation.items() if np.dtype(array.dtype).kind == "f"}
        self._statistics = {key: ElementStatistics(array) for key, array in arrays.items() if array.size <= 256}

    def add(self, number: int, episode: Episode) -> None:
        """Check one episode by itself and keep what the checks over all of them need."""
        found, spec, limits = self._findings, self.spec, self.limits
        hz = spec.control_hz
        found.extend(
            time_findings(episode.time, number, control_hz=hz, limits=limits, is_measured=is_measured(episode))
        )
        found.extend(age_findings(camera_ages(episode), number, control_hz=hz, limits=limits))
        found.extend(outcome_findings(episode, number, spec, limits))
        wait, measured, is_finite = np.diff(episode.time), [], True
        for key, array, rows in value_arrays(episode, spec):
            bad = list(finite_findings(rows, number, key=key))
            found.extend(bad)
            is_finite &= not bad
            found.extend(bounds_findings(rows, number, key=key, array=array))
            if array.size > 256:
                continue
            self._statistics[key].add(rows)
            flat = rows.reshape(len(rows), -1).astype(np.float64)
            if not bad:
                found.extend(motion_findings(flat, wait, number, key=key, array=array, spec=spec, limits=limits))
                if key != "action":
                    measured.append(flat)
        if measured:
            found.extend(idle_findings(np.concatenate(measured, axis=1), number, control_hz=hz, limits=limits))
        self._images(number, episode)
        if is_finite:
            self._response.add(episode)
        self._keep(number, episode)

    def damaged(self, number: int, error: RobotRlError) -> None:
        """Count an episode that could not be read."""
        self._damaged += 1
        text = f"{error.where}: expected {error.expected}, got {error.got}"
        fix = f"{error.hint} Or leave it out: {delete_command(number)}"
        self._findings.append(Finding("damaged", Severity.error, Place(number), text, None, fix))

    def result(self) -> Quality:
        """Everything that was found, and the facts behind it."""
        found, traces, limits = list(self._findings), self._traces, self.limits
        if not traces:
            found.append(
                Finding("empty", Severity.error, Place(), "no episode that can be read", 0.0, "Collect or record some.")
            )
        steps = sum(one.steps for one in traces)
        for key, statistics in self._statistics.items():
            array = self.spec.action if key == "action" else self.spec.observation[key]
            summary = statistics.summary()
            found.extend(spread_findings(summary, key=key, array=array))
            found.extend(unit_findings(summary, key=key, array=array, limits=limits))
        if self._at_bound is not None:
            grippers = gripper_elements(self.spec.action)
            found.extend(
                clipping_findings(self._at_bound, steps, array=self.spec.action, grippers=grippers, limits=limits)
            )
        across = [*duplicate_findings(traces, limits), *seed_findings(traces), *start_findings(traces)]
        found.extend(self._renumbered(finding) for finding in across)
        found.extend(success_share_findings(traces, self.spec, limits))
        found.extend(response_findings(self._response, limits))
        return Quality(tuple(worst_first(found)), self._facts(steps), may_train(found))

    def _images(self, number: int, episode: Episode) -> None:
        images = images_of(episode, self.spec)
        # Without proprio every still picture counts as one of a robot that stands still.
        proprio = np.asarray(episode.observation.get("proprio", np.zeros((len(episode), 1))), np.float64)
        proprio = np.nan_to_num(proprio.reshape(len(episode), -1))
        for key, frames in images.items():
            self._findings.extend(
                image_findings(frames, proprio, number, key=key, control_hz=self.spec.control_hz, limits=self.limits)
            )
        self._findings.extend(same_cameras(images, number))

    def _keep(self, number: int, episode: Episode) -> None:
        self._numbers.append(number)
        self._traces.append(trace(episode, self._compared))
        rate = achieved_hz(episode.time)
        if rate is not None and np.isfinite(rate):
            self._rates.append(rate)
        counts = at_bound(episode.action, self.spec.action)
        if counts is not None:
            self._at_bound = counts if self._at_bound is None else self._at_bound + counts

    def _renumbered(self, finding: Finding) -> Finding:
        """Checks over all count the readable episodes; episodes of the dataset have other numbers when some are not."""
        if not self._damaged or finding.place.episode is None:
            return finding
        place = replace(finding.place, episode=self._numbers[finding.place.episode])
        return replace(finding, place=place, episodes=tuple(self._numbers[i] for i in finding.episodes))

    def _facts(self, steps: int) -> dict[str, Any]:
        limits, traces = self.limits, self._traces
        lengths = [one.steps for one in traces]
        windows = [
            windows_of(n, history=limits.history, horizon=limits.horizon, execute=limits.execute) for n in lengths
        ]
        lags = [
            {"action": names_of(self.spec.action)[lag.element], "steps": lag.steps,
             "ms": 1000 * lag.steps / self.spec.control_hz, "correlation": round(lag.correlation, 3)}
            for lag in self._response.lags()
        ]  # fmt: skip
        grip = self._response.grip()
        return {
            "episodes": len(traces),
            "damaged": self._damaged,
            "steps": steps,
            "successes": sum(one.success for one in traces),
            "lengths": [min(lengths, default=0), max(lengths, default=0)],
            "declared_hz": self.spec.control_hz,
            "achieved_hz": [round(x, 4) for x in np.quantile(self._rates, (0, 0.5, 1))] if self._rates else None,
            "windows": steps,
            "windows_diffusion_policy": sum(windows),
            "episodes_without_window": sum(count == 0 for count in windows),
            "lag": lags,
            "gripper_correlation": None if grip is None else round(grip, 3),
            "sources": {str(code): count for code, count in sorted(Counter(one.source for one in traces).items())},
            "limits": asdict(limits),
        }
