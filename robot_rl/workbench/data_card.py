"""`robot-rl data card PATH`: show the card of a dataset; `--set FIELD=VALUE` writes it, `--markdown` makes a README."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from robot_rl.data.dataset_card import FIELDS, card_markdown, changed_card, parse_setting, read_card, write_card
from robot_rl.data.store import EpisodeStore


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: "card" and what stands behind it.
    """
    parser = argparse.ArgumentParser(
        prog="robot-rl data card", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="fields:\n" + "\n".join(f"  {key:<12} {what}" for key, what in FIELDS.items()),
    )  # fmt: skip
    parser.add_argument("path", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="an empty value removes it")
    parser.add_argument("--markdown", action="store_true", help="print a README.md for a hub")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written")
    parser.add_argument("--json", action="store_true", help="print the card as JSON")
    options = parser.parse_args(list(words[1:]))
    changes = dict(parse_setting(text) for text in options.set)
    with EpisodeStore.open(options.path, mode="r") as store:
        card = read_card(store.metadata)
        if options.markdown and not changes:
            print(card_markdown(store), end="")
            return 0
    if changes and options.dry_run:
        card = changed_card({"card": card}, changes)
    elif changes:
        card = write_card(options.path, changes)
    if options.markdown:
        with EpisodeStore.open(options.path, mode="r") as store:
            print(card_markdown(store), end="")
    elif options.json:
        print(json.dumps(card))
    else:
        said = {key: card.get(key, f"not said ({what})") for key, what in FIELDS.items()}
        print("\n".join(f"{key}: {value}" for key, value in said.items()))
    return 0
