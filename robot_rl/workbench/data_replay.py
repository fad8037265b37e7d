"""`robot-rl data replay STORE [env=NAME] [env.FIELD=VALUE ...]`: play recorded actions again and see how far they drift.

Every episode starts from its recorded seed, in the environment of the store unless another one is named. Observations
are compared step by step with the recorded ones. Exit code 0: nothing over the thresholds, all actions played and the
same success everywhere; 1 otherwise. Actions that mean something else there are refused.

    robot-rl data replay demos.zarr                                  as recorded
    robot-rl data replay demos.zarr env.sim_backend=physx_cuda       other settings of the same environment
    robot-rl data replay imported.zarr env=pick_cube env.max_episode_steps=86 --threshold 0.01
    robot-rl data replay demos.zarr robot=sim_panda driver=sim       through the control loop, on a simulated robot
    robot-rl data replay demos.zarr robot=ur5e driver.scene=null --episodes 3     on a robot at the start of episode 3
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from robot_rl.data.drift import EpisodeDrift, drift_of, thresholds_of
from robot_rl.data.editing import episode_indices
from robot_rl.data.replaying import play_in_env, require_playable, seed_of, settings_that_differ
from robot_rl.data.robot_replay import RobotReplay
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.loop_parts import LoopParts
from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.deploy.watchdog import Watchdog, WatchdogConfig
from robot_rl.errors import ConfigError, DataError
from robot_rl.runs.composition import compose_config
from robot_rl.runs.config import build, load_config
from robot_rl.runs.progress import Progress
from robot_rl.stages.deploy import DeployConfig, Scene


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: "replay" and what stands behind it.
    """
    asked = _parser().parse_intermixed_args(list(words[1:]))
    with EpisodeStore.open(asked.store, mode="r") as store:
        chosen: Sequence[int] = range(len(store))
        if asked.episodes is not None:
            chosen = episode_indices(asked.episodes, len(store), where=str(store.path))
        thresholds = thresholds_of(dict(asked.threshold), store.spec)
        is_robot = any(word.lstrip("+~").startswith(("robot=", "driver")) for word in asked.overrides)
        play = _on_robot if is_robot else _in_env
        drifts, changed = play(asked, store, chosen, thresholds)
    report = report_of(drifts, settings=changed)
    print(json.dumps(report) if asked.json else report_text(drifts, report))
    return 0 if report["same"] == len(drifts) else 1


def _in_env(
    asked: argparse.Namespace, store: EpisodeStore, chosen: Sequence[int], thresholds: Mapping[str, float]
) -> tuple[list[EpisodeDrift], list[str]]:
    env = build(_env_of(asked, store.metadata), num_envs=1, history=1)
    drifts = []
    try:
        require_playable(store.spec, env.spec, where=str(store.path), whose="the environment")
        changed = settings_that_differ(store.metadata, env.protocol())
        with Progress("replay", total=len(chosen)) as progress:
            for index in chosen:
                episode = store.episode(index)
                seed = seed_of(episode, where=f"{store.path}, episode {index}")
                frames, success = play_in_env(env, episode, seed)
                said: dict[str, Any] = {"spec": store.spec, "thresholds": thresholds, "index": index, "seed": seed}
                drifts.append(drift_of(episode, frames, success, **said))
                progress.advance(1)
    finally:
        env.close()
    return drifts, changed


def _on_robot(
    asked: argparse.Namespace, store: EpisodeStore, chosen: Sequence[int], thresholds: Mapping[str, float]
) -> tuple[list[EpisodeDrift], list[str]]:
    config = load_config(DeployConfig, asked.overrides, name="deploy")
    card, drifts = load_robot_card(config.robot), list[EpisodeDrift]()
    with ExitStack() as undo:
        robot: Any = build(config.driver.get("robot") or {}, card=card, spec=store.spec)
        scene: Any = robot if isinstance(robot, Scene) else None
        if config.driver.get("scene"):
            scene = build(config.driver["scene"], card=card)
            undo.callback(scene.close)
        if scene is None and len(chosen) != 1:
            raise ConfigError(
                "robot-rl data replay", expected="one episode (--episodes N) on a robot that nobody resets",
                got=f"{len(chosen)}", hint="Bring the robot to the start of each by hand.",
            )  # fmt: skip
        heart = None
        if config.driver.get("watchdog"):
            facts = {"card": config.robot, "domain_id": config.driver["robot"].get("domain_id")}
            heart = Watchdog(WatchdogConfig(config.driver["watchdog"], facts, card.thresholds.heartbeat_s))
            undo.callback(heart.close)
        longest = max(int(store.lengths[index]) for index in chosen)
        parts = LoopParts(heart=heart)
        replay = undo.enter_context(
            RobotReplay(robot, store.spec, longest=longest, start_tolerance=asked.start_tolerance, parts=parts)
        )
        bar = undo.enter_context(Progress("replay", total=len(chosen)))
        for index in chosen:
            episode, seed, success = store.episode(index), None, None
            if scene is not None:
                seed = seed_of(episode, where=f"{store.path}, episode {index}")
            frames, steps = replay.play(episode, reset=None if scene is None else partial(scene.reset, seed))
            if scene is not None:
                success = bool(scene.episode().success)
            said: dict[str, Any] = {"spec": store.spec, "thresholds": thresholds, "index": index, "seed": seed}
            drifts.append(drift_of(episode, frames, success, **said, at=steps))
            bar.advance(1)
    return drifts, [
        f"{key}: not compared, the robot has none" for key in store.spec.observation if key not in replay.keys
    ]


def report_of(drifts: Sequence[EpisodeDrift], *, settings: Sequence[str]) -> dict[str, Any]:
    """JSON types: counts, and every episode."""
    return {
        "episodes": len(drifts),
        "same": sum(drift.is_same for drift in drifts),
        "success": sum(drift.success for drift in drifts),
        "replayed_success": sum(drift.replayed_success is True for drift in drifts),
        "success_agrees": sum(drift.replayed_success == drift.success for drift in drifts),
        "cut_short": sum(drift.played < drift.steps for drift in drifts),
        "settings_that_differ": list(settings),
        "per_episode": [drift.to_json() for drift in drifts],
    }


def report_text(drifts: Sequence[EpisodeDrift], report: Mapping[str, Any]) -> str:
    """A line for each episode and key, and what they come to."""
    rows: list[tuple[str, ...]] = [
        ("episode", "seed", "played", "success", "key", "start", "mean", "largest", "first over", "where it is largest")
    ]
    for drift in drifts:
        words = {True: "yes", False: "no", None: "?"}
        success = f"{words[drift.success]} -> {words[drift.replayed_success]}"
        ends = [f"{drift.episode}", f"{drift.seed}", f"{drift.played}/{drift.steps}", success]
        for key, one in drift.keys.items():
            over = "-" if one.first_over is None else f"step {one.first_over}"
            sizes = (f"{one.max_per_step[0]:.3g}", f"{one.mean_difference:.3g}", f"{one.max_difference:.3g} {one.unit}")
            rows.append((*ends, key, *sizes, over, one.worst))
            ends = [""] * 4
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"setting that differs: {line}" for line in report["settings_that_differ"]]
    lines.append(
        f"{report['same']} of {report['episodes']} episodes replay as recorded; success {report['success']} recorded, "
        f"{report['replayed_success']} replayed, the same in {report['success_agrees']}; {report['cut_short']} ended early"
    )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl data replay", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("store", type=Path)
    parser.add_argument("overrides", nargs="*", help="env=NAME or env.FIELD=VALUE; or robot=CARD and driver=NAME")
    parser.add_argument("--episodes", nargs="+", metavar="N", help="only these: 3, or 5-7 (default: all)")
    parser.add_argument(
        "--threshold", type=_threshold, action="append", default=[], metavar="[KEY=]X",
        help="difference that counts, in the key's unit (default 0.0001; images: a mean of 2 levels)",
    )  # fmt: skip
    parser.add_argument(
        "--start-tolerance", type=float, default=0.05, metavar="X",
        help="on a robot: largest difference of any proprio element from the recorded start (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with the differences of every step")
    return parser


def _threshold(text: str) -> tuple[str, float]:
    key, _, number = text.rpartition("=")
    try:
        return key, float(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected X or KEY=X, got {text!r}") from error


def _env_of(asked: argparse.Namespace, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The environment that was named, or that of the store with the fields that were named."""
    from omegaconf import OmegaConf

    foreign = [word for word in asked.overrides if not word.lstrip("+~").startswith(("env=", "env."))]
    if foreign:
        raise ConfigError(
            "robot-rl data replay", expected="env=NAME, env.FIELD=VALUE, robot=CARD or driver=NAME", got=" ".join(foreign),
            hint="A store comes first, then words about the environment.",
        )  # fmt: skip
    if any(word.startswith("env=") for word in asked.overrides):
        component: dict[str, Any] = compose_config(asked.overrides, name="evaluate")["env"]
        return component
    if not metadata.get("env"):
        raise DataError(
            f"{asked.store}", expected="an environment in its metadata, as `robot-rl collect` writes it", got="none",
            hint="Name it: env=pick_cube (configs/env), and fields of it: env.max_episode_steps=86.",
        )  # fmt: skip
    fields = OmegaConf.from_dotlist([word.removeprefix("env.") for word in asked.overrides])
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(dict(metadata["env"])), fields))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}
