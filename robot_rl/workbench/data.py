"""Datasets: `robot-rl data COMMAND ...`; `robot-rl data COMMAND --help` says more of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

# Command -> (module beside this one, whose `main` gets the command's name first; what it does).
COMMANDS = {
    "info": ("data_info", "what a dataset holds; for a foreign one, what an import needs"),
    "import": ("data_import", "write the episodes of another format to a new store"),
}


def main(words: Sequence[str]) -> int:
    """Run `robot-rl data ...`; returns the exit code.

    Args:
        words: arguments behind `data`.
    """
    lines = [f"  {name:<8} {text}" for name, (_module, text) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="robot-rl data", description=__doc__, epilog="commands:\n" + "\n".join(lines), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, usage="robot-rl data COMMAND ...",
    )  # fmt: skip
    parser.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND")
    options = parser.parse_args(list(words[:1]))
    code: int = import_module(f"robot_rl.workbench.{COMMANDS[options.command][0]}").main(words)
    return code
