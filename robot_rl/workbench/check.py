"""Check an environment, a policy, a teacher or a robot against its contract: `robot-rl check env env=...`.

    robot-rl check env env=pick_cube
    robot-rl check env '~env' '+env={_target_: my_package.my_env.make_env}'
    robot-rl check policy policy=runs/<run> env=pick_cube
    robot-rl check policy policy=runs/<run>/export/policy.onnx env=pick_cube
    robot-rl check policy policy=mlp env=pick_cube          (untrained, from the configuration group)
    robot-rl check teacher teacher=scripted env=push_cube expert=scripted       (or demonstrations=<store>)
    robot-rl check robot ur5e --policy policy.onnx          (connects and reads; nothing is commanded)
    robot-rl check teleop teleop=keyboard --record said.jsonl   (use it meanwhile; no robot listens)

Exit code 0 when the contract is kept (warnings are allowed), 1 when it is broken, 2 on a wrong configuration.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from robot_rl.checks.findings import Finding, Severity, has_errors
from robot_rl.errors import ConfigError

log = logging.getLogger(__name__)

# A robot computer has no torch: what needs it is imported where it is used.
ROBOT = "robot_rl.hardware.ros2_robot:Ros2Robot"
DEFAULT_HISTORY = 2
NUM_ENVS = 3


def main(words: Sequence[str]) -> int:
    """Run a suite and print its findings.

    Raises:
        ConfigError: wrong words, or a component that can't be built.
    """
    parser = argparse.ArgumentParser(
        prog="robot-rl check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("env", "policy", "teacher", "robot", "teleop"), help="what to check")
    parser.add_argument("overrides", nargs="*", help="key=value and group=choice, as for the stages; robot: its card")
    parser.add_argument("--json", action="store_true", help="print findings as JSON")
    parser.add_argument("--config-dir", type=Path, help="a folder of your own YAML files")
    parser.add_argument("--history", type=int, default=DEFAULT_HISTORY, help="frames of an observation (env)")
    parser.add_argument("--num-episodes", type=int, default=5, help="episodes a play (env), at least 4 are played")
    parser.add_argument("--policy", help="exported policy that shall run there (robot)")
    parser.add_argument("--driver", default=ROBOT, help="package.module:Class of the robot (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="to read (robot, teleop)")
    parser.add_argument("--record", type=Path, help="file for what the device said, for teleop=replay (teleop)")
    options = parser.parse_intermixed_args(list(words))
    suites = {"env": _env_findings, "policy": _policy_findings, "teacher": _teacher_findings}
    suites |= {"robot": _robot_findings, "teleop": _teleop_findings}
    findings, checks = suites[options.kind](options)
    if options.json:
        report = {"checks": list(checks), "findings": [finding.to_json() for finding in findings]}
        print(json.dumps(report, indent=2))
    else:
        print(as_text(checks, findings))
    return 1 if has_errors(findings) else 0


def as_text(checks: Sequence[str], findings: Sequence[Finding]) -> str:
    """One line a check, and under it what it found."""
    lines = []
    for name in checks:
        own = [finding for finding in findings if finding.check == name]
        worst = next((s for s in Severity if any(finding.severity is s for finding in own)), None)
        lines.append(f"{'ok' if worst is None else worst.value:8} {name}")
        for finding in own:
            lines += [f"         {finding.where}", f"           expected: {finding.expected}"]
            lines += [f"           got:      {finding.got}", f"           fix:      {finding.fix}"]
    counts = [f"{sum(f.severity is s for f in findings)} {s.value}" for s in Severity]
    return "\n".join([*lines, f"{len(checks)} checks: {', '.join(counts)}"])


def _robot_findings(options: argparse.Namespace) -> tuple[list[Finding], Sequence[str]]:
    """Of a robot: what it is, then what it says of itself. It is let go without a command."""
    from robot_rl.checks.robot import ROBOT_CHECKS, check_robot
    from robot_rl.deploy.child_process import function_of
    from robot_rl.deploy.loop_checks import streams_of
    from robot_rl.deploy.onnx_policy import OnnxPolicy
    from robot_rl.deploy.robot_card import load_robot_card
    from robot_rl.deploy.targets import ActionReader

    if len(options.overrides) != 1:
        raise ConfigError(
            "check robot", expected="one robot card", got=str(options.overrides), hint="A name or a YAML file."
        )
    card = load_robot_card(options.overrides[0])
    driver = function_of(options.driver)
    policy = None if options.policy is None else OnnxPolicy(options.policy)
    config = next(iter(get_type_hints(driver.__init__).values()))()
    robot = driver(config, card=card, **({} if policy is None else {"spec": policy.spec}))
    if policy is not None:
        ActionReader(policy.spec, card)  # refuses what this robot can't be told
    streams = None if policy is None else streams_of(policy.config.observation_keys, card)
    try:
        return check_robot(robot, streams=streams, seconds=options.seconds), ROBOT_CHECKS
    finally:
        robot.close()


def _teleop_findings(options: argparse.Namespace) -> tuple[list[Finding], Sequence[str]]:
    from robot_rl.checks.teleop import TELEOP_CHECKS, check_teleop
    from robot_rl.runs.config import build, load_config
    from robot_rl.stages.collect import CollectConfig
    from robot_rl.teleop.command_files import write_commands

    config = load_config(CollectConfig, options.overrides, name="collect", config_dir=options.config_dir)
    if not config.teleop:
        raise ConfigError("check teleop", expected="teleop=<device>", got="none", hint="E.g. teleop=keyboard.")
    heard: list[Any] = []
    findings = check_teleop(build(config.teleop), seconds=options.seconds, heard=heard)
    if options.record is not None:
        log.info("%s: %d commands", options.record, write_commands(options.record, heard))
    # Without a connection nothing else was looked at.
    return findings, TELEOP_CHECKS[:1] if any(finding.check == "connect" for finding in findings) else TELEOP_CHECKS


def _env_findings(options: argparse.Namespace) -> tuple[list[Finding], Sequence[str]]:
    from robot_rl.checks.env import ENV_CHECKS, check_env
    from robot_rl.runs.config import build, load_config
    from robot_rl.stages.evaluate import EvaluateConfig

    config = load_config(EvaluateConfig, options.overrides, name="evaluate", config_dir=options.config_dir)
    findings = check_env(
        lambda number: build(config.env, num_envs=number, history=options.history), num_episodes=options.num_episodes
    )
    return findings, ENV_CHECKS


def _policy_findings(options: argparse.Namespace) -> tuple[list[Finding], Sequence[str]]:
    from robot_rl.checks.policy import POLICY_CHECKS, check_policy
    from robot_rl.runs.config import build, load_config
    from robot_rl.stages.evaluate import EvaluateConfig, check_policy_spec, load_any_policy

    words = [word.lstrip("+") for word in options.overrides]
    named = [word.partition("=")[2] for word in words if word.startswith("policy=")]
    if not named:
        raise ConfigError(
            "check policy", expected="policy=<run, .onnx file or group choice>", got="none",
            hint="E.g. `robot-rl check policy policy=runs/<run> env=pick_cube`.",
        )  # fmt: skip
    path = named[-1].strip("'\"")
    if path.endswith(".onnx") or (path[:1] != "{" and "/" in path) or Path(path).is_dir():
        config = load_config(EvaluateConfig, options.overrides, name="evaluate", config_dir=options.config_dir)
        policy = load_any_policy(config)
        env = build(config.env, num_envs=NUM_ENVS, history=policy.config.history)
    else:
        policy, env = _untrained(options)
    try:
        if hasattr(policy, "spec"):
            check_policy_spec(policy, env.spec, where=path)
        first = env.reset(range(NUM_ENVS))
        second = env.reset(range(NUM_ENVS, 2 * NUM_ENVS))
        return check_policy(policy, env.spec, observations=(first, second)), POLICY_CHECKS
    finally:
        env.close()


def _teacher_findings(options: argparse.Namespace) -> tuple[list[Finding], Sequence[str]]:
    """Of a teacher: its card, its answers, and how they compare with demonstrations or an expert."""
    from robot_rl.checks.teacher import TEACHER_CHECKS, check_teacher
    from robot_rl.runs.config import build, load_config
    from robot_rl.stages.baseline import open_teacher, spec_of
    from robot_rl.stages.refine_teacher import RefineTeacherConfig
    from robot_rl.stages.refine_teacher_setup import shown_steps

    config = load_config(RefineTeacherConfig, options.overrides, name="refine_teacher", config_dir=options.config_dir)
    spec = spec_of(config.env)
    # Without the cache: it would answer for the teacher where questions are repeated or turned round.
    teacher = open_teacher(config.teacher, spec, replace(config.calls, cache_entries=0))
    shown = shown_steps(config, spec, history=teacher.history)
    env = build(config.env, num_envs=NUM_ENVS, history=teacher.history)
    try:
        first = config.quality_first_seed
        observation = env.reset(range(first, first + NUM_ENVS))
        return check_teacher(teacher, env, observation=observation, shown=shown), TEACHER_CHECKS
    finally:
        teacher.close()
        env.close()


def _untrained(options: argparse.Namespace) -> tuple[Any, Any]:
    """A policy of a configuration group with random weights and no normalisation, and its environment."""
    import torch

    from robot_rl.data.normalizer import Normalizer
    from robot_rl.runs.config import build, load_config, validate_component
    from robot_rl.stages.imitate import ImitateConfig

    config = load_config(ImitateConfig, options.overrides, name="imitate", config_dir=options.config_dir)
    _target, fields = validate_component(config.policy, where="policy")
    env = build(config.env, num_envs=NUM_ENVS, history=getattr(fields, "history", 1))
    sizes = {key: spec.size for key, spec in env.spec.observation.items() if not key.startswith("image/")}
    torch.manual_seed(0)
    normalizer = Normalizer.identity({**sizes, "action": env.spec.action.size})
    return build(config.policy, spec=env.spec, normalizer=normalizer).eval(), env
