"""What people see of a session, gathered from its parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_rl.data.element_names import names_of
from robot_rl.deploy.safety import Reason
from robot_rl.teleop.episode_machine import State
from robot_rl.teleop.panel import SessionView
from robot_rl.teleop.pilots import Choice
from robot_rl.teleop.rows import IMAGE
from robot_rl.types import Reading

# What a person is to do in a state, when nothing else is said.
_SAYS = {
    State.idle: "Nothing moves. Start or reset.",
    State.ready: "Drive with the clutch held; start begins to record.",
    State.recording: "Recording.",
    State.paused: "Paused; the robot holds. Resume or stop.",
    State.review: "Label it, then save, discard or record it again.",
    State.saving: "Saving.",
    State.resetting: "Resetting.",
    State.fault: "Stopped. Find out why, then release.",
    State.estop: "Emergency stop. Release when it is safe.",
    State.closed: "The session has ended.",
}


def view_of(session: Any, reading: Reading, now_s: float, choice: Choice | None) -> SessionView:
    """One view.

    Args:
        session: a session.Session, running.
        reading: of this turn.
        now_s: when it was received.
        choice: newest action; None before the first.
    """
    machine, effects, spec = session.machine, session.effects, session.driver.robot.spec
    facts = {} if session.parts.facts is None else session.parts.facts(reading)
    left_s = effects.resetter.seconds_left if machine.state is State.resetting else 0.0
    countdown = f"Starts in {left_s:.0f} s." if left_s > 0 else ""
    pictures = {k.removeprefix(IMAGE): frame for k, frame in reading.frames.items() if k.startswith(IMAGE)}
    return SessionView(
        state=machine.state.value,
        allowed=machine.allowed,
        message=effects.message or countdown or _SAYS[machine.state],
        episode=_episode(session, now_s, choice),
        totals=_totals(session),
        loop=_loop(session),
        ages_ms={s: 1e3 * (now_s - at_s) for s, at_s in reading.stamps.items()} | facts.get("ages_ms", {}),
        proprio=_named(names_of(spec.observation["proprio"]), reading.frames.get("proprio")),
        action={} if choice is None else _named(names_of(spec.action), choice.action),
        pose=() if reading.pose is None else tuple(float(x) for x in reading.pose),
        joints={name: float(x) for name, x in zip(session.driver.robot.card.joints, reading.position, strict=False)},
        scene=facts.get("scene", {}),
        limits=_limits(session, choice),
        device=session.hearing.status(),
        episodes=effects.table,
        pictures=pictures | facts.get("pictures", {}),
    )


def _episode(session: Any, now_s: float, choice: Choice | None) -> dict[str, Any]:
    effects, recorder = session.effects, session.recorder
    return {
        "number": len(recorder.store), "seed": effects.seed, "steps": max(effects.rows, 0),
        "seconds": now_s - effects.began_s if session.machine.state is State.recording else 0.0,
        "source": "" if choice is None else choice.source.name, "clutch": session.pilot.engagement,
        "interventions": 0 if choice is None else choice.intervention, "subtask": effects.said.subtask,
        "label": effects.said.label, "problems": list(effects.said.problems),
    }  # fmt: skip


def _totals(session: Any) -> dict[str, Any]:
    effects = session.effects
    counts = effects.counts()
    return {
        "saved": counts["stored"], "wanted": session.config.total, "successes": counts["successes"],
        "failures": counts["stored"] - counts["successes"], "discarded": counts["discarded"],
        "disk_bytes_left": effects.left.free_bytes, "seconds": effects.left.seconds,
        "takeover": effects.takeover, "policy_success": effects.policy_success, "deleted": effects.list.deleted,
    }  # fmt: skip


def _loop(session: Any) -> dict[str, Any]:
    jitter, slots = session.schedule.jitter, session.loop.rate
    return {
        "wanted_hz": session.hz, "achieved_hz": slots, "late_p99_ms": 1e3 * jitter.late.percentile_s(99.0),
        "skipped": jitter.skipped, "queued": session.recorder.queued, "lost": session.recorder.lost,
    }  # fmt: skip


def _limits(session: Any, choice: Choice | None) -> tuple[str, ...]:
    judged = session.driver.judged
    bits = Reason.none if judged is None else judged.reasons
    names = [str(bit.name) for bit in Reason if bit and bit in bits]
    return (*(() if choice is None else choice.clamped), *names)


def _named(names: tuple[str, ...], values: Any) -> dict[str, float]:
    if values is None:
        return {}
    flat = np.asarray(values, np.float64).ravel()
    # A name that stands for all elements is not one for each.
    keys = names if len(set(names)) == len(flat) else [f"{index}" for index in range(len(flat))]
    return {str(key): float(value) for key, value in zip(keys, flat, strict=True)}
