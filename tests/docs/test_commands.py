"""Every command line of README and docs is one that the program takes: command, options, configuration keys and choices.

Nothing is run: stages are composed as the command line composes them, tools stop behind their parser.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from typing import Any, NoReturn

import pytest
from doc_blocks import ROOT, Block, blocks, commands, words_of

from robot_rl.cli import _parser
from robot_rl.cli_help import TOOLS
from robot_rl.errors import ConfigError
from robot_rl.runs.config import load_config
from robot_rl.stages import STAGES

OURS = re.compile(r"(robot-rl|make|python3? -m robot_rl[.\w]*)(\s|$)")
SHELL = ("", "bash", "sh", "console")
ALL = list(blocks())
WITH_COMMANDS = [block for block in ALL if block.language in SHELL and not block.why_not]
# Tools that take a stage's keys: word behind the tool, and the stage.
STAGE_OF = {"env": "evaluate", "policy": "evaluate", "teacher": "refine_teacher", "teleop": "collect"}
MISSPELT = "robot-rl imitate train.num_stepz=5"  # README shows that it is refused
# Not a command, in a page that others write.
A_TREE = "runs/<date>_<time>_<stage>"
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
# A module of the reader's, which is not there.
PACKAGE_OF_THE_READER = "my_package"


class Parsed(Exception):
    """The words of a tool were understood."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options


@pytest.fixture
def stop_when_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsers of tools raise Parsed in place of returning; `data` alone looks at its first word, and goes on."""
    for name in ("parse_args", "parse_intermixed_args"):
        real = getattr(argparse.ArgumentParser, name)

        def parse(self: Any, *given: Any, real: Any = real, **more: Any) -> Any:
            options = real(self, *given, **more)
            if self.prog in ("robot-rl", "robot-rl data"):
                return options
            raise Parsed(options)

        monkeypatch.setattr(argparse.ArgumentParser, name, parse)
    known = argparse.ArgumentParser.parse_known_args

    def parse_known(self: Any, *given: Any, **more: Any) -> Any:
        options = known(self, *given, **more)
        if self.prog == "robot-rl data check":  # the rest are words of an import
            raise Parsed(options[0])
        return options

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known)
    monkeypatch.setattr(argparse.ArgumentParser, "error", _refuse)


def _refuse(self: argparse.ArgumentParser, message: str) -> NoReturn:
    raise AssertionError(f"{self.prog}: {message}")


def _compose(stage: str, overrides: list[str]) -> None:
    module = importlib.import_module(f"robot_rl.stages.{stage}")
    words = [word for word in overrides if not word.startswith("resume=")]
    if len(words) < len(overrides):
        return  # a resumed run keeps its configuration
    load_config(module.CONFIG, words, name=stage)


def _as_the_stage(stage: str, words: list[str], earlier: list[str]) -> list[str]:
    """Check a stage's words; returns the overrides, for a later `...`."""
    options = _parser().parse_intermixed_args([stage, *words])
    overrides: list[str] = []
    for word in options.overrides:
        overrides += earlier if word == "..." else [word]
    try:
        _compose(stage, overrides)
    except ConfigError as error:
        if PACKAGE_OF_THE_READER not in str(error):
            raise
    return overrides


def _as_a_tool(tool: str, words: list[str]) -> None:
    module = importlib.import_module(f"robot_rl.workbench.{tool}")
    with pytest.raises(Parsed) as parsed:
        module.main(words)
    options = parsed.value.options
    if tool == "check" and options.kind in STAGE_OF:
        named = next((word for word in options.overrides if word.lstrip("+").startswith("policy=")), "")
        untrained = options.kind == "policy" and "/" not in named
        _as_the_stage("imitate" if untrained else STAGE_OF[options.kind], options.overrides, [])
    elif tool == "sweep" and options.stage:
        from robot_rl.workbench.sweep import expand

        keys = {word.partition("=")[0] for setting in expand(options.overrides) for word in setting}
        fixed = [word for word in options.overrides if word.partition("=")[0] not in keys]
        for setting in expand(options.overrides):
            _as_the_stage(options.stage, [*fixed, *setting], [])
    elif tool == "adapt":
        _as_the_stage("evaluate", options.words, [])


def _check_line(line: str, earlier: dict[str, list[str]]) -> None:
    words = words_of(line)
    if words[0] == "make":
        assert TARGETS.issuperset(word for word in words[1:] if "=" not in word), line
        return
    if words[0] != "robot-rl":
        assert (ROOT / Path(*words[2].split(".")[1:])).with_suffix(".py").is_file() or importlib.util.find_spec(
            words[2]
        )
        return
    command, rest = words[1], words[2:]
    assert command in (*STAGES, *TOOLS, "info"), f"no command {command}"
    if command in TOOLS:
        _as_a_tool(command, rest)
    elif command in STAGES:
        earlier[command] = _as_the_stage(command, rest, earlier.get(command, []))


@pytest.mark.usefixtures("stop_when_parsed")
@pytest.mark.parametrize("block", WITH_COMMANDS, ids=lambda block: block.where)
def test_command_lines_are_accepted(block: Block) -> None:
    earlier: dict[str, list[str]] = {}
    for line in commands(block.text):
        if not OURS.match(line) or line == MISSPELT:
            continue
        # `robot-rl x | head` belongs to the shell; `$(...)` is a run for a tool, and more keys for a stage.
        stands_for = "some_run" if line.split()[1:2] and line.split()[1] in TOOLS else ""
        line = re.sub(r"\$\([^()]*(\([^()]*\))?[^()]*\)", stands_for, re.sub(r"\s[|>].*$", "", line))
        try:
            _check_line(line, earlier)
        except Exception as error:
            pytest.fail(f"{block.where}: {line}\n{type(error).__name__}: {error}", pytrace=False)


@pytest.mark.usefixtures("stop_when_parsed")
def test_wrong_command_lines_would_be_found() -> None:
    with pytest.raises(ConfigError, match="num_steps"):
        _check_line(MISSPELT, {})
    with pytest.raises(AssertionError, match="unrecognized arguments"):
        _check_line("robot-rl data delete demos.zarr 3 --no-such-option", {})
    with pytest.raises(AssertionError, match="no command"):
        _check_line("robot-rl imitat", {})


def test_every_shell_block_is_checked_or_says_why_not() -> None:
    """The tutorials are run by a test of their own."""
    silent = [
        block.where
        for block in WITH_COMMANDS
        if not any(OURS.match(line) for line in commands(block.text))
        and "docs/tutorials/" not in block.where
        and not block.text.startswith(A_TREE)
    ]
    assert silent == []
