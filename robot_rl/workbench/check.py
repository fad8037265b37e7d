"""Check an environment or a policy of yours against its contract: `robot-rl check env env=...`.

    robot-rl check env env=pick_cube
    robot-rl check env '~env' '+env={_target_: my_package.my_env.make_env}'
    robot-rl check policy policy=runs/<run> env=pick_cube
    robot-rl check policy policy=runs/<run>/export/policy.onnx env=pick_cube
    robot-rl check policy policy=mlp env=pick_cube          (untrained, from the configuration group)

Exit code 0 when the contract is kept (warnings are allowed), 1 when it is broken, 2 on a wrong configuration.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robot_rl.checks import ENV_CHECKS, POLICY_CHECKS, Finding, Severity, check_env, check_policy, has_errors
from robot_rl.errors import ConfigError
from robot_rl.runs.config import build, load_config, validate_component
from robot_rl.stages.evaluate import EvaluateConfig, check_spec, load_any_policy
from robot_rl.stages.imitate import ImitateConfig

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
    parser.add_argument("kind", choices=("env", "policy"), help="what to check")
    parser.add_argument("overrides", nargs="*", help="key=value and group=choice, as for the stages")
    parser.add_argument("--json", action="store_true", help="print findings as JSON")
    parser.add_argument("--config-dir", type=Path, help="a folder of your own YAML files")
    parser.add_argument("--history", type=int, default=DEFAULT_HISTORY, help="frames of an observation (env)")
    parser.add_argument("--num-episodes", type=int, default=5, help="episodes a play (env), at least 4 are played")
    options = parser.parse_intermixed_args(list(words))
    if options.kind == "env":
        findings, checks = _env_findings(options), ENV_CHECKS
    else:
        findings, checks = _policy_findings(options), POLICY_CHECKS
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


def _env_findings(options: argparse.Namespace) -> list[Finding]:
    config = load_config(EvaluateConfig, options.overrides, name="evaluate", config_dir=options.config_dir)
    return check_env(
        lambda number: build(config.env, num_envs=number, history=options.history), num_episodes=options.num_episodes
    )


def _policy_findings(options: argparse.Namespace) -> list[Finding]:
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
        check_spec(getattr(policy, "spec", env.spec), env.spec, where=path)
        first = env.reset(range(NUM_ENVS))
        second = env.reset(range(NUM_ENVS, 2 * NUM_ENVS))
        return check_policy(policy, env.spec, observations=(first, second))
    finally:
        env.close()


def _untrained(options: argparse.Namespace) -> tuple[Any, Any]:
    """A policy of a configuration group with random weights and no normalisation, and its environment."""
    import torch

    from robot_rl.data.normalizer import Normalizer

    config = load_config(ImitateConfig, options.overrides, name="imitate", config_dir=options.config_dir)
    _target, fields = validate_component(config.policy, where="policy")
    env = build(config.env, num_envs=NUM_ENVS, history=getattr(fields, "history", 1))
    sizes = {key: spec.size for key, spec in env.spec.observation.items() if not key.startswith("image/")}
    torch.manual_seed(0)
    normalizer = Normalizer.identity({**sizes, "action": env.spec.action.size})
    return build(config.policy, spec=env.spec, normalizer=normalizer).eval(), env
