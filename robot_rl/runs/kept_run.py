"""A stage's run below a study's folder, which a study that is started again finds, continues or takes as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robot_rl.errors import RunError
from robot_rl.runs.config import config_to_json, config_to_yaml, read_config
from robot_rl.runs.directory import RunDirectory, RunState

log = logging.getLogger(__name__)


def finished_run(
    root: Path, stage: str, function: Callable[..., dict[str, Any]], config: Any, *,
    task: str, command: Sequence[str], hint: str,
) -> RunDirectory:  # fmt: skip
    """The finished run of a stage below `root`; made or continued where it is not there.

    Args:
        root: its own folder; becomes the configuration's `run_root`.
        stage: name of the stage.
        function: its `run`.
        config: its configuration.
        task, command: of a new run.
        hint: what to do when the run there has another configuration.

    Raises:
        RunError: the run there has another configuration.
    """
    config = replace(config, run_root=str(root))
    found = sorted(path.parent for path in root.glob("*/status.json"))
    if not found:
        yaml = config_to_yaml(config)
        run = RunDirectory.create(root, stage=stage, task=task, seed=config.seed, config_yaml=yaml, command=command)
    else:
        run = RunDirectory.open(found[-1])
        if config_to_json(read_config(type(config), run.path / "config.yaml")) != config_to_json(config):
            raise RunError(
                str(run.path), expected="the configuration of this command", got="another one", hint=hint
            )
        if run.read_json("status.json")["state"] == RunState.finished.value:
            return run
    log.info("%s: %s", stage, run.path)
    with run.running():
        function(config, run)
    return run
