"""Write the report of a run: `robot-rl report RUN [RUN ...]` makes RUN/report.html, one file that needs nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from robot_rl.errors import ConfigError, RunError
from robot_rl.runs.directory import write_synced


def main(words: Sequence[str]) -> int:
    """Write the pages and print their paths.

    Raises:
        ConfigError: `--output` with several runs.
        RunError: a folder is no run, or the page can't be written.
    """
    parser = argparse.ArgumentParser(prog="robot-rl report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory of any stage or of a pipeline")
    parser.add_argument("--output", type=Path, help="file to write (default RUN/report.html)")
    options = parser.parse_args(list(words))
    if options.output is not None and len(options.runs) > 1:
        raise ConfigError(
            "report --output", expected="one run", got=f"{len(options.runs)} runs", hint="Leave --output out."
        )
    for path in options.runs:
        print(write_report(path, options.output or path / "report.html"))
    return 0


def write_report(run: Path, output: Path) -> Path:
    """Write the page of `run` to `output` in one piece and return its path.

    Raises:
        RunError: `run` is no run, or `output` can't be written.
    """
    from robot_rl.runs.report import read_run
    from robot_rl.runs.report_page import report_html

    text = report_html(read_run(run))
    try:
        write_synced(output, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise RunError(
            str(output), expected="a file that can be written", got=str(error), hint="Give another --output."
        ) from error
    return output
