"""`robot-rl data import SOURCE TARGET [--format FORMAT]`: episodes of another program into a new store."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from robot_rl.data.dataset_card import json_or_text
from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.importing import EpisodeReader, ImportReport, import_episodes
from robot_rl.data.formats.known import FORMATS, card_text, detect_format, open_source
from robot_rl.data.formats.maniskill import ManiSkillReader
from robot_rl.data.formats.maniskill_header import ManiSkillHeader, read_header
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.runs.composition import compose_config
from robot_rl.runs.config import build, convert_config
from robot_rl.runs.progress import Progress
from robot_rl.specs import EnvSpec

# A component as in configs/env/*.yaml: its fields come from the file.
_MANISKILL = "robot_rl.envs.maniskill.make_env"


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: "import" and what stands behind it.
    """
    return _import(parser().parse_args(list(words[1:])))


def parser() -> argparse.ArgumentParser:
    """Words of the command."""
    adder = argparse.ArgumentParser(prog="robot-rl data import", description=__doc__, allow_abbrev=False)
    adder.add_argument("source", type=Path, help="file or folder of the other format")
    adder.add_argument("target", type=Path, help="the new store, for example datasets/demos.zarr")
    adder.add_argument("--format", choices=FORMATS, help="default: what the source looks like")
    adder.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the format; see docs/import.md",
    )
    adder.add_argument("--env", help="maniskill: env group (configs/env) that gives the spec; default: from the file")
    adder.add_argument(
        "--spec", type=Path, help="spec card (YAML or JSON); maniskill: a whole spec, or a store with one"
    )
    adder.add_argument("--max-episode-steps", type=int, help="time limit for the spec, in place of the task's own")
    adder.add_argument("--source-type", help="maniskill: who acted: teleop, scripted, policy (default: from the json)")
    adder.add_argument("--success", choices=("file", "last_step", "none"), default="file", help="maniskill: see docs")
    adder.add_argument("--max-episodes", type=int, help="only the first so many episodes")
    adder.add_argument("--skip-bad", action="store_true", help="leave bad episodes out and list them")
    adder.add_argument("--dry-run", action="store_true", help="read and check everything, write nothing")
    adder.add_argument("--json", action="store_true", help="print the report as JSON")
    return adder


def _import(options: argparse.Namespace) -> int:
    for name in ("max_episodes", "max_episode_steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(flag, expected="1 or more", got=str(value), hint="Correct it, or leave it out.")
    reader = reader_of(options)
    try:
        count = len(reader.names) if options.max_episodes is None else min(options.max_episodes, len(reader.names))
        with Progress("import", total=count) as progress:
            report = import_episodes(
                reader,
                None if options.dry_run else options.target,
                max_episodes=options.max_episodes,
                skip_bad=options.skip_bad,
                on_episode=lambda done, total: progress.advance(1),
            )
    finally:
        reader.close()
    print(json.dumps(report.to_json()) if options.json else _report_text(report, reader.spec))
    return 1 if report.left_out and not options.skip_bad else 0


def reader_of(options: argparse.Namespace) -> EpisodeReader:
    """The source that the words ask for.

    Raises:
        ConfigError, DataError: it can't be read as they say.
    """
    name = options.format or detect_format(options.source)
    return _maniskill(options) if name == "maniskill" else _keyed(options, name)


def _report_text(report: ImportReport, spec: EnvSpec) -> str:
    verb = f"{report.target}:" if report.target else "Dry run, nothing was written:"
    counts = f"{report.episodes} episodes of {spec.env_id}, {report.steps} steps, {report.successes} with success"
    lines = [f"{verb} {counts}, {len(report.left_out)} left out"]
    lines += [f"  left out: {text}" for text in report.left_out]
    lines += [f"  note: {text}" for text in report.notes]
    return "\n".join(lines)


def _maniskill(options: argparse.Namespace) -> EpisodeReader:
    header = read_header(options.source)
    spec = _maniskill_spec(header, options)
    if options.max_episode_steps is not None:
        spec = replace(spec, max_episode_steps=options.max_episode_steps)
    return ManiSkillReader(header, spec, source=options.source_type, success=options.success)


def _maniskill_spec(header: ManiSkillHeader, options: argparse.Namespace) -> EnvSpec:
    """From a card, from an env of our configuration, or from the environment that the file names."""
    if options.spec is not None:
        return _whole_spec(options.spec)
    if options.env is not None:
        component = compose_config([f"env={options.env}"], name="evaluate")["env"]
    else:
        component = {"_target_": _MANISKILL, **_maniskill_fields(header)}
    env = build(component, num_envs=1, history=1)
    spec: EnvSpec = env.spec
    env.close()
    return spec


def _maniskill_fields(header: ManiSkillHeader) -> dict[str, Any]:
    where = f"{header.path.with_suffix('.json')}, env_info"
    if header.control_mode is None:
        raise DataError(
            where, expected="a control_mode", got="none", hint="Give --env or --spec, which say how an action is read."
        )
    fields = {"task": header.env_id, "control_mode": header.control_mode}
    if header.image_size is None:
        return fields | {"obs_mode": "state"}
    rows, columns = header.image_size
    if rows != columns:
        raise DataError(where, expected="square images", got=f"{rows}x{columns}", hint="Give the spec with --spec.")
    return fields | {"obs_mode": "rgb", "image_size": rows}


def _whole_spec(path: Path) -> EnvSpec:
    if path.is_dir():
        with EpisodeStore.open(path, mode="r") as store:
            return store.spec
    try:
        return EnvSpec.from_json(_card(path), where=f"{path}")
    except DataError as error:
        hint = "A whole spec is what `robot-rl data info STORE --json` prints under `spec`; or give such a store."
        raise DataError(error.where, expected=error.expected, got=error.got, hint=hint) from error


def _keyed(options: argparse.Namespace, name: str) -> EpisodeReader:
    if options.env is not None:
        raise ConfigError("--env", expected="--spec with a card", got="--env", hint="Keys of the source need a card.")
    written = _card(options.spec) if options.spec is not None else {}
    # How the source is read, of formats that must be told; the command line goes before the card.
    chosen = dict(written.pop("options", {}))
    if name == "diffusion_policy" and "empty_chunks" in written:
        chosen["empty_chunks"] = written["empty_chunks"]
    source = open_source(name, options.source, chosen | dict(options.option))
    try:
        rate = source.declared.get("control_hz")
        if name == "mcap" and written.get("control_hz", rate) != rate:
            raise DataError(
                f"{options.spec}, control_hz", expected=f"{rate}, as options.rate_hz", got=f"{written['control_hz']}",
                hint="Leave it out.",
            )  # fmt: skip
        card = dict(source.declared) | written
        missing = [field.name for field in fields(SpecCard) if field.name not in card and _is_required(field)]
        if missing and set(card) <= {field.name for field in fields(SpecCard)}:
            raise DataError(
                f"{options.source}",
                expected="--spec with a card: what its numbers mean (kind, frame, rate, units, success)",
                got="none" if options.spec is None else f"one without {', '.join(missing)}",
                hint=f"Fill in this card and save it as card.yaml:\n\n{card_text(source)}",
            )
        spec_card: SpecCard = convert_config(SpecCard, card, where=str(options.spec or options.source))
        if options.max_episode_steps is not None:
            spec_card = replace(spec_card, max_episode_steps=options.max_episode_steps)
        return CardReader(source, spec_card)
    except BaseException:
        source.close()
        raise


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _option(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as JSON where it is some."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, json_or_text(value)


def _card(path: Path) -> dict[str, Any]:
    """A YAML or JSON file as plain data."""
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if not isinstance(content, dict):
            raise ValueError("no mapping")
    except Exception as error:  # yaml and omegaconf have no common error
        raise DataError(
            f"{path}", expected="a YAML or JSON file", got=str(error), hint="See docs/import.md for a card."
        ) from error
    return {str(key): value for key, value in content.items()}
