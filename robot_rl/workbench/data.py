"""Datasets: `robot-rl data COMMAND ...`; `robot-rl data COMMAND --help` says more of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

# Command -> (module beside this one, whose `main` gets the command's name first; what it does).
COMMANDS = {
    "info": ("data_info", "what a dataset holds; for a foreign one, what an import needs"),
    "check": ("data_check", "what is wrong with a dataset, where, and what to do; 0: training may start"),
    "stats": ("data_stats", "range, mean, spread and quantiles of every element; lengths, success, sources"),
    "card": ("data_card", "show or write the dataset card; --markdown for a hub"),
    "view": ("data_view", "one HTML page: episodes, plots, film strips; --rerun FILE.rrd"),
    "import": ("data_import", "write the episodes of another format to a new store"),
    "export": ("data_export", "write a store in another format"),
    "delete": ("data_edit", "leave episodes out"),
    "merge": ("data_edit", "several stores into a new one"),
    "split": ("data_edit", "one store into several"),
    "trim": ("data_edit", "cut steps from beginnings and ends"),
    "relabel": ("data_edit", "new success, reward, source, instruction or card"),
    "reencode": ("data_edit", "the same episodes with today's chunks and codecs"),
    "convert": ("data_convert", "the same episodes under another declaration: rotations, delta or absolute, gripper"),
    "replay": ("data_replay", "play recorded actions in an env or on a robot; how far they drift"),
    "verify": ("data_repair", "read everything against the checksums; 1 when something is damaged"),
    "repair": ("data_repair", "keep what of a damaged store verifies"),
    "restore": ("data_edit", "undo: bring the former version back from .trash"),
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
