"""`robot-rl data export STORE TARGET --format lerobot|robomimic`: a store in another format, read back before it appears.

What a format can't hold lies beside it in a sidecar that its own loaders ignore: imported again, the store is the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robot_rl.data.store import EpisodeStore
from robot_rl.runs.progress import Progress

FORMATS = ("lerobot", "robomimic")


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: "export" and what stands behind it.

    Raises:
        DataError: as the writer; nothing is at the target then.
    """
    asked = _parser().parse_args(list(words[1:]))
    with EpisodeStore.open(asked.store, mode="r") as store, Progress("export", total=len(store)) as progress:

        def on_episode(_done: int, _total: int) -> None:
            progress.advance(1)

        facts: dict[str, Any]
        if asked.format == "lerobot":
            from robot_rl.data.formats.lerobot_writer import write_lerobot

            facts = write_lerobot(store, asked.target, images=asked.images, on_episode=on_episode)
        else:
            from robot_rl.data.formats.robomimic_writer import write_robomimic

            facts = write_robomimic(
                store, asked.target, done_mode=asked.done_mode, normalize=asked.normalize,
                valid_fraction=asked.valid_fraction, seed=asked.seed, on_episode=on_episode,
            )  # fmt: skip
    print(json.dumps(facts) if asked.json else "\n".join(f"{key}: {value}" for key, value in facts.items()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="robot-rl data export", description=__doc__, allow_abbrev=False)
    parser.add_argument("store", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--images", choices=("video", "png"), default="video", help="lerobot: H.264, or exact PNG")
    parser.add_argument("--done-mode", type=int, choices=(0, 1, 2), default=2, help="robomimic: success, end, both")
    parser.add_argument("--normalize", action="store_true", help="robomimic: scale actions to [-1, 1]")
    parser.add_argument(
        "--valid-fraction", type=float, default=0.1, help="robomimic: share of mask/valid (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="robomimic: of that split")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
