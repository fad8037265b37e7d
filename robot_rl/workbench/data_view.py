"""`robot-rl data view PATH`: one HTML page that needs nothing else; `--rerun FILE.rrd` writes a recording for Rerun."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.element_names import names_of
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.runs.directory import write_synced
from robot_rl.runs.progress import Progress
from robot_rl.runs.report_data import pick_episodes
from robot_rl.specs import ArraySpec
from robot_rl.types import Episode
from robot_rl.workbench.data_view_page import STRIP_EPISODES, Bar, view_html

_DRAWN = 6


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: "view" and what stands behind it.

    Raises:
        ConfigError: for an episode that is not there.
        DataError: for a damaged episode, a file that can't be written, or Rerun that is not installed.
    """
    parser = argparse.ArgumentParser(prog="robot-rl data view", description=__doc__, allow_abbrev=False)
    parser.add_argument("path", type=Path)
    parser.add_argument("--output", type=Path, help="page to write (default: the path with .html)")
    parser.add_argument("--episode", type=int, action="append", default=[], help="draw this one (may be repeated)")
    parser.add_argument("--episodes", type=int, default=_DRAWN, help=f"else draw so many, evenly spread ({_DRAWN})")
    parser.add_argument("--rerun", type=Path, metavar="FILE.rrd", help="also write the drawn episodes for Rerun")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    options = parser.parse_args(list(words[1:]))
    with EpisodeStore.open(options.path, mode="r") as store:
        drawn = _drawn(store, options.episode, options.episodes)
        output = options.output or options.path.with_name(options.path.name.rstrip("/") + ".html")
        facts: dict[str, Any] = {"page": str(output), "episodes": len(store), "drawn": drawn}
        facts |= {"rerun": str(options.rerun)} if options.rerun else {}
        if not options.dry_run:
            rerun = _rerun() if options.rerun else None
            _write(output, _page(store, drawn).encode("utf-8", errors="replace"))
            if rerun is not None:
                write_rerun(rerun, store, drawn, options.rerun)
    print(json.dumps(facts) if options.json else "\n".join(f"{key}: {value}" for key, value in facts.items()))
    return 0


def strip_bars(store: EpisodeStore, numbers: Sequence[int]) -> list[Bar]:
    """Bars of these episodes.

    Raises:
        DataError: when the sources can't be read.
    """
    sources, ends, lengths = store.load(["source"])["source"], store.episode_ends, store.lengths
    bars = []
    for number in numbers:
        codes, counts = np.unique(sources[ends[number] - lengths[number] : ends[number]], return_counts=True)
        shares = {int(code): float(count) / int(lengths[number]) for code, count in zip(codes, counts, strict=True)}
        bars.append(Bar(number, int(lengths[number]), bool(store.success[number]), shares))
    return bars


def write_rerun(rerun: Any, store: EpisodeStore, drawn: Sequence[int], target: Path) -> None:
    """Episodes as a Rerun recording: action, observations, reward and success over step and time, and images.

    Args:
        rerun: the module rerun (0.23).
        store: the dataset.
        drawn: episodes.
        target: file to write.
    """
    stream = rerun.RecordingStream(f"robot_rl/{store.path.name}")
    stream.save(str(target))
    with Progress("rerun", total=len(drawn)) as progress:
        for number in drawn:
            episode = store.episode(number)
            for step in range(len(episode)):
                stream.set_time("step", sequence=step)
                stream.set_time("time", duration=float(episode.time[step]))
                for path, value in _rerun_entities(rerun, episode, step, store):
                    stream.log([f"episode_{number}", *path], value)
            progress.advance(1)
    stream.disconnect()


def _rerun_entities(rerun: Any, episode: Episode, step: int, store: EpisodeStore) -> Iterator[tuple[list[str], Any]]:
    arrays: list[tuple[str, ArraySpec, np.ndarray]] = [("action", store.spec.action, episode.action)]
    arrays += [(key, array, np.asarray(episode.observation[key])) for key, array in store.spec.observation.items()]
    for key, array, rows in arrays:
        if key.startswith("image/"):
            yield key.split("/"), rerun.Image(rows[step])
        elif len(array.shape) == 2:
            colours = rows[step][:, 3:6] if rows.shape[2] >= 6 else None
            yield key.split("/"), rerun.Points3D(rows[step][:, :3], colors=colours)
        else:
            for name, value in zip(names_of(array), rows[step].reshape(-1), strict=True):
                yield [*key.split("/"), name], rerun.Scalars(float(value))
    yield ["reward"], rerun.Scalars(float(episode.reward[step]))
    yield ["success"], rerun.Scalars(float(episode.success[step]))
    yield ["source"], rerun.Scalars(float(episode.source[step]))


def _rerun() -> Any:
    try:
        import rerun
    except ModuleNotFoundError as error:
        raise DataError(
            "--rerun", expected="the package rerun-sdk", got="no such package", hint="pip install 'robot-rl[rerun]'"
        ) from error
    return rerun


def _drawn(store: EpisodeStore, asked: Sequence[int], count: int) -> list[int]:
    for number in asked:
        if not 0 <= number < len(store):
            raise ConfigError(
                "--episode", expected=f"0..{len(store) - 1}", got=str(number), hint="`robot-rl data info` counts them."
            )
    if count < 0:
        raise ConfigError("--episodes", expected="0 or more", got=str(count), hint="Correct it, or leave it out.")
    return sorted(set(asked)) if asked else pick_episodes(np.asarray(store.success), min(count, len(store)))


def _page(store: EpisodeStore, drawn: Sequence[int]) -> str:
    spread = np.linspace(0, len(store) - 1, min(len(store), STRIP_EPISODES)).round().astype(int)
    numbers = sorted({int(number) for number in spread} | set(drawn)) if len(store) else []
    said = f"{len(store)} episodes, {int(store.lengths.sum())} steps, {int(store.success.sum())} with success. "
    said += f"The strip shows {'all' if len(numbers) == len(store) else f'{len(numbers)}, evenly spread'}; "
    said += f"{len(drawn)} are drawn (--episode chooses, --episodes says how many)."
    with Progress("view", total=len(drawn)) as progress:
        episodes = {}
        for number in drawn:
            episodes[number] = store.episode(number)
            progress.advance(1)
    title = f"{store.spec.env_id}: {store.path.name}"
    return view_html(store, strip_bars(store, numbers), episodes, title=title, said=said)


def _write(output: Path, content: bytes) -> None:
    try:
        write_synced(output, content)
    except OSError as error:
        raise DataError(
            str(output), expected="a file that can be written", got=str(error), hint="Give another --output."
        ) from error
