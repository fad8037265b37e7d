"""`robot-rl <command> [overrides]`: compose the configuration, open a run directory, call the stage.

Exit codes: 0 ok, 1 user or data error, 2 usage or configuration, 3 safety stop, 130 interrupted.
The summary goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl.cli_help import COMMANDS, TOOLS, general_help, stage_help
from robot_rl.engines.ranks import Ranks, follow, refuse_ranks
from robot_rl.errors import ConfigError, RobotRlError, closest
from robot_rl.stages import STAGES
from robot_rl.workbench.columns import as_columns

if TYPE_CHECKING:
    from robot_rl.runs.directory import RunDirectory

log = logging.getLogger("robot_rl")

INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        words: arguments behind the program name; None takes those of this process.
    """
    words = list(sys.argv[1:] if words is None else words)
    _hear_interrupts()
    is_tool = bool(words) and words[0] in TOOLS  # tools have options of their own
    options, unknown = _parser().parse_known_intermixed_args([] if is_tool else words)
    try:
        if unknown:
            raise ConfigError(
                f"option {unknown[0]!r}", expected="an option of `robot-rl --help`", got="none of that name",
                hint="Keys of a command have no dashes, and `=`: `num_episodes=5`. `robot-rl <command> --help` lists them.",
            )  # fmt: skip
        if is_tool:
            return _run_tool(words[0], [word for word in words[1:] if word != "--debug"])
        if options.command is None or (options.help and options.command not in STAGES):
            print(general_help())
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
            with _missing_packages_explained(options.command):
                print(stage_help(options.command, options.config_dir))
            return 0
        return _run_stage(options, words)
    except RobotRlError as error:
        if "--debug" in words:
            raise
        print(f"robot-rl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("robot-rl: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `robot-rl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run_tool(command: str, words: Sequence[str]) -> int:
    """Call a workbench tool, which leaves no run directory."""
    _log_to_stderr(quiet=False)
    try:
        with _missing_packages_explained(command):
            return int(importlib.import_module(f"robot_rl.workbench.{command}").main(words))
    except SystemExit as stop:  # argparse: wrong words end with 2, --help with 0
        return int(stop.code or 0)


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
    parser.add_argument("--track")
    parser.add_argument("--track-project", default="robot-rl")
    return parser


def _run_stage(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Open or continue a run, call the stage inside it, and record what became of it."""
    with _missing_packages_explained(options.command):
        from robot_rl.runs.config import config_to_yaml
        from robot_rl.runs.trackers import Follower, check_names

        stage = importlib.import_module(f"robot_rl.stages.{options.command}")
        track = getattr(stage, "TRACK", "tensorboard") if options.track is None else options.track
        trackers = [name for name in track.split(",") if name not in ("", "none")]
        check_names(trackers)
        refuse_ranks(stage, options.command)
        config, run = _open_run(stage, options)
    if options.dry_run:
        print(config_to_yaml(config), end="")
        return 0
    if Ranks.of_environment().rank:
        return follow(stage, config, run)
    if run is None:
        run = _new_run(config, config_to_yaml(config), options.command, words)
    began = time.monotonic()
    with run.log_file(), _terminate_as_interrupt():
        log.info("run directory %s", run.path)
        run.set_status("running")
        try:
            with (
                _missing_packages_explained(options.command),
                Follower(run.path, trackers, project=options.track_project),
            ):
                summary = stage.run(config, run)
        except KeyboardInterrupt:
            _record(run, "interrupted", "stopped by the user", began)
            log.warning("interrupted; %s", _how_to_go_on(stage, options.command, run))
            return INTERRUPTED
        except RobotRlError as error:
            _record(run, "failed", str(error), began)
            log.error("failed: %s", error, exc_info=options.debug)
            return error.exit_code
        except OSError as error:
            _record(run, "failed", f"{type(error).__name__}: {error}", began)
            if error.errno not in NO_ROOM:
                log.exception("failed by a bug in robot-rl or in a plug-in")
            else:
                hint = f"what was saved before is whole; free some space; {_how_to_go_on(stage, options.command, run)}"
                log.error("failed: no room to write: %s; %s", error, hint)
            return 1
        except BaseException as error:
            _record(run, "failed", f"{type(error).__name__}: {error}", began)
            log.exception("failed by a bug in robot-rl or in a plug-in")
            return 1
        run.set_status("finished", seconds=time.monotonic() - began)
    if options.json:
        print(json.dumps({"run": str(run.path), **summary}))
    elif hasattr(stage, "table"):
        print(f"{as_columns(stage.table(summary))}\nrun: {run.path}")
    else:
        print(as_text({**summary, "run": str(run.path)}))
    return 0


def _how_to_go_on(stage: Any, command: str, run: RunDirectory) -> str:
    if getattr(stage, "CAN_RESUME", True):
        return f"continue with: robot-rl {command} resume={run.path}"
    return f"`{command}` can't be resumed: start it again"


def _record(run: RunDirectory, state: str, message: str, began: float) -> None:
    """Write what became of the run; on a full disk say so, and let the first error be the one that is shown."""
    try:
        run.set_status(state, message=message, seconds=time.monotonic() - began)
    except OSError as error:
        log.warning("%s/status.json could not be written (%s) and still says `running`", run.path, error)


def _open_run(stage: Any, options: argparse.Namespace) -> tuple[Any, RunDirectory | None]:
    """The checked configuration, and the run to continue if there is one."""
    from robot_rl.runs.config import load_config, read_config
    from robot_rl.runs.directory import RunDirectory

    overrides = [word for word in options.overrides if not word.startswith("resume=")]
    paths = [word.partition("=")[2].strip("'\"") for word in options.overrides if word.startswith("resume=")]
    if not paths or paths[-1] in ("", "null"):
        return load_config(stage.CONFIG, overrides, name=options.command, config_dir=options.config_dir), None
    run = RunDirectory.open(paths[-1])
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
    """One text for each override that the stored configuration does not say already."""
    from omegaconf import OmegaConf

    from robot_rl.runs.config import config_to_json

    stored = OmegaConf.create({"root": config_to_json(config)})
    for override in overrides:
        key, _, text = override.lstrip("+").partition("=")
        known = key.partition(".")[0] in stored.root
        has = OmegaConf.select(stored, f"root.{key}") if known else None
        asked = OmegaConf.from_dotlist([f"value={text}"])["value"]
        if not known or OmegaConf.is_dict(has):
            yield f"{override} (a whole group can't be given again)"
        elif has != asked:
            yield f"{override} (the run has {key}={'null' if has is None else has})"


def _new_run(config: Any, yaml: str, command: str, words: Sequence[str]) -> RunDirectory:
    from robot_rl.runs.directory import RunDirectory

    return RunDirectory.create(
        config.run_root, stage=command, task=task_name(config), seed=config.seed, config_yaml=yaml,
        command=["robot-rl", *words],
    )  # fmt: skip


def task_name(config: Any) -> str:
    """Name of a run directory's task: the config's or env's `task`, the env's module, the (first) dataset, the robot card."""
    env = getattr(config, "env", None) or {}
    module = str(env.get("_target_", "")).rpartition(".")[0].rpartition(".")[2]
    names = (
        getattr(config, "task", ""),
        env.get("task"),
        env.get("env_id"),
        module,
        Path(str(getattr(config, "dataset", ""))).stem,
        *(Path(str(dataset)).stem for dataset in getattr(config, "datasets", ())),
        Path(str(getattr(config, "robot", ""))).stem,
    )
    return next((str(name) for name in names if name), "none")


def _hear_interrupts() -> None:
    """A background job of a script begins with SIGINT ignored, and Python leaves it so: `kill -INT` must be heard all the same."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM (a job scheduler's) ends a stage like Ctrl-C, so that its status does not stay `running`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def _missing_packages_explained(command: str) -> Iterator[None]:
    """Turn a missing optional package into an error that names the extra to install."""
    from robot_rl.errors import missing_package

    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "robot_rl":
            raise
        raise missing_package(error.name, where=f"robot-rl {command}") from error


def _log_to_stderr(*, quiet: bool) -> None:
    """Log our own messages from INFO on, those of libraries from WARNING on."""
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    if sys.stderr.isatty():
        try:
            from rich.logging import RichHandler

            from robot_rl.runs.progress import console

            handler = RichHandler(console=console(), show_path=False, show_level=False, rich_tracebacks=False)
        except ModuleNotFoundError:
            pass  # the base install has no rich; plain lines do
    handler.addFilter(
        lambda record: record.levelno >= logging.WARNING or (not quiet and record.name.startswith("robot_rl"))
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _info(*, as_json: bool) -> int:
    """Print versions and devices."""
    from robot_rl.runs.provenance import collect

    facts = {key: value for key, value in collect().items() if key not in ("argv", "time")}
    print(json.dumps(facts) if as_json else as_text(facts))
    return 0


def as_text(values: Mapping[str, Any], indent: str = "") -> str:
    """Nested values as indented lines."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", as_text(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {f'{value:.6g}' if isinstance(value, float) else value}")
    return "\n".join(line for line in lines if line)
