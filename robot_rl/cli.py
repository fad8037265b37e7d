"""`robot-rl <command> [overrides]`: compose the configuration, open a run directory, call the stage.

Exit codes: 0 ok, 1 user or data error, 2 usage or configuration, 3 safety stop, 130 interrupted.
The summary goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from robot_rl.errors import ConfigError, RobotRlError, closest

if TYPE_CHECKING:
    from robot_rl.runs.directory import RunDirectory

log = logging.getLogger("robot_rl")

STAGES = ("collect", "imitate", "distill_onestep", "export", "evaluate", "pipeline")
COMMANDS = (*STAGES, "info")
INTERRUPTED = 130


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        words: arguments behind the program name; None takes those of this process.
    """
    words = list(sys.argv[1:] if words is None else words)
    options = _parser().parse_intermixed_args(words)
    try:
        if options.command is None or (options.help and options.command not in STAGES):
            print(_general_help())
            return 0 if options.help else 2
        if options.command not in COMMANDS:
            raise ConfigError(
                f"command {options.command!r}", expected="a command", got="none of that name",
                hint=closest(options.command, COMMANDS),
            )  # fmt: skip
        _log_to_stderr(quiet=options.quiet)
        if options.command == "info":
            return _info(as_json=options.json)
        if options.help:
            print(_stage_help(options.command, options.config_dir))
            return 0
        return _run_stage(options, words)
    except RobotRlError as error:
        if options.debug:
            raise
        print(f"robot-rl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("robot-rl: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="robot-rl", add_help=False, allow_abbrev=False)
    parser.add_argument("command", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--config-dir", type=Path)
    return parser


def _run_stage(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Open or continue a run, call the stage inside it, and record what became of it."""
    with _missing_packages_explained(options.command):
        from robot_rl.runs.config import config_to_yaml

        stage = importlib.import_module(f"robot_rl.stages.{options.command}")
        config, run = _open_run(stage, options)
        if options.dry_run:
            print(config_to_yaml(config), end="")
            return 0
        if run is None:
            run = _new_run(config, config_to_yaml(config), options.command, words)
    began = time.monotonic()
    with run.log_file():
        log.info("run directory %s", run.path)
        try:
            with _missing_packages_explained(options.command):
                summary = stage.run(config, run)
        except KeyboardInterrupt:
            run.set_status("interrupted", message="stopped by the user", seconds=time.monotonic() - began)
            print(f"robot-rl: interrupted; continue with\n  robot-rl {options.command} resume={run.path}", file=sys.stderr)
            return INTERRUPTED
        except RobotRlError as error:
            run.set_status("failed", message=str(error), seconds=time.monotonic() - began)
            log.error("%s", error, exc_info=options.debug)
            return error.exit_code
        except BaseException as error:
            run.set_status("failed", message=f"{type(error).__name__}: {error}", seconds=time.monotonic() - began)
            logging.getLogger().error("this is a bug in robot-rl or in a plug-in", exc_info=True)
            return 1
        run.set_status("finished", seconds=time.monotonic() - began)
    print(json.dumps({"run": str(run.path), **summary}) if options.json else _text(summary, run.path))
    return 0


def _open_run(stage: Any, options: argparse.Namespace) -> tuple[Any, RunDirectory | None]:
    """The checked configuration, and the run to continue if there is one."""
    from robot_rl.runs.config import load_config, read_config
    from robot_rl.runs.directory import RunDirectory

    overrides = [word for word in options.overrides if not word.startswith("resume=")]
    paths = [word.partition("=")[2] for word in options.overrides if word.startswith("resume=")]
    if not paths or paths[-1] in ("", "null"):
        return load_config(stage.CONFIG, overrides, name=options.command, config_dir=options.config_dir), None
    run = RunDirectory.open(paths[-1].strip("'\""))
    if run.stage != options.command:
        raise ConfigError(
            f"resume={run.path}", expected=f"a run of {options.command}", got=f"a run of {run.stage}",
            hint=f"Use `robot-rl {run.stage} resume={run.path}`.",
        )  # fmt: skip
    config = read_config(stage.CONFIG, run.path / "config.yaml")
    differences = list(_differences(overrides, config))
    if differences:
        raise ConfigError(
            f"resume={run.path}", expected="the configuration of that run", got="; ".join(differences),
            hint="A resumed run keeps its configuration: leave these out, or start a new run.",
        )  # fmt: skip
    return replace(config, resume=str(run.path)), run


def _differences(overrides: Sequence[str], config: Any) -> Iterator[str]:
    """What the overrides ask for and the stored configuration does not say, one text each."""
    from omegaconf import OmegaConf

    from robot_rl.runs.config import config_to_json

    stored = OmegaConf.create(config_to_json(config))
    for override in overrides:
        key, _, text = override.lstrip("+").partition("=")
        has = OmegaConf.select(stored, key) if not key.startswith("~") else None
        if OmegaConf.is_config(has):
            yield f"{override} (choices of groups can't be given again)"
        elif has != OmegaConf.create({"value": None} | OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))["value"]:
            yield f"{override} (the run has {key}={has})"


def _new_run(config: Any, yaml: str, command: str, words: Sequence[str]) -> RunDirectory:
    from robot_rl.runs.directory import RunDirectory

    return RunDirectory.create(
        config.run_root, stage=command, task=task_name(config), seed=config.seed, config_yaml=yaml,
        command=["robot-rl", *words],
    )  # fmt: skip


def task_name(config: Any) -> str:
    """Task for the name of a run directory: `config.task`, the env's `env_id` or module, or the dataset's name."""
    env = getattr(config, "env", None) or {}
    dataset, target = str(getattr(config, "dataset", "")), str(env.get("_target_", ""))
    names = (getattr(config, "task", None), env.get("env_id"), target.split(".")[-2:][0], Path(dataset).stem)
    return next((str(name) for name in names if name), "none")


@contextmanager
def _missing_packages_explained(command: str) -> Iterator[None]:
    """Turn a missing optional package into an error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "robot_rl":
            raise
        package = error.name.partition(".")[0]
        extra = _extra_of(package)
        raise ConfigError(
            f"robot-rl {command}", expected=f"the package {package!r}", got="not installed",
            hint=f"Install it: pip install '{extra}'.",
        ) from error  # fmt: skip


def _info(*, as_json: bool) -> int:
    from robot_rl.runs.provenance import collect

    facts = collect()
    print(json.dumps(facts) if as_json else _text(facts, None))
    return 0
