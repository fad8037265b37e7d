"""Plans to delete, merge, split and re-encode episodes; data/rewriting.py carries them out.

Everything is checked here before anything is touched: a wrong index, a second copy of an episode or a share that does
not add up is refused by name, all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data import episode_rows as er
from robot_rl.data.rewriting import Piece, Plan, pieces_of, source_facts, with_history
from robot_rl.data.same_spec import table_of_semantics
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import size_on_disk
from robot_rl.data.video_files import video_keys
from robot_rl.errors import ConfigError, DataError

_LISTED = 20


def episode_indices(words: Sequence[str], count: int, *, where: str) -> list[int]:
    """Indices from words like "3" and "5-7" (both ends belong to it), sorted, each once.

    Raises:
        ConfigError: for a word that is no index.
        DataError: naming all indices that do not exist.
    """
    found = set[int]()
    for word in words:
        first, dash, last = word.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash) and int(last or first) >= int(first)):
            raise ConfigError(
                f"episode {word!r}", expected="an index like 3, or a range like 5-7", got=repr(word),
                hint="Indices count from 0; `robot-rl data info` says how many there are.",
            )  # fmt: skip
        found |= set(range(int(first), int(last or first) + 1))
    unknown = sorted(index for index in found if index >= count)
    if unknown:
        raise DataError(
            where,
            expected=f"episodes of 0..{count - 1}",
            got=f"{', '.join(map(str, unknown[:_LISTED]))}{' ...' if len(unknown) > _LISTED else ''}",
            hint="Nothing was changed.",
        )
    return sorted(found)


def plan_delete(store: EpisodeStore, episodes: Sequence[int], *, target: Path | None = None) -> Plan:
    """All episodes but these, in their order.

    Args:
        store: open for append unless a `target` is given.
        episodes: existing indices.
        target: a new store; None replaces `store`.

    Raises:
        DataError: when an index does not exist, or no episode would be left.
    """
    gone = set(episode_indices([str(index) for index in episodes], len(store), where=str(store.path)))
    kept = [index for index in range(len(store)) if index not in gone]
    if not gone or not kept:
        raise DataError(
            f"{store.path}",
            expected=f"some of its {len(store)} episodes to delete, and some to keep",
            got=f"{len(gone)} to delete",
            hint="Nothing was changed. To remove a whole dataset, remove its folder.",
        )
    return edited(store, pieces_of(store, kept), "delete", arguments={"episodes": sorted(gone)}, target=target)


def edited(
    store: EpisodeStore,
    pieces: Sequence[Piece],
    command: str,
    *,
    arguments: Mapping[str, Any],
    target: Path | None,
    may_change: frozenset[str] | None = None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """The plan of an edit of one store: in its place (its lock is held), or at `target`."""
    metadata = with_history(store.metadata, command, arguments=arguments, sources=[source_facts(store)])
    return Plan(
        target=store.path if target is None else target,
        spec=store.spec,
        metadata=metadata,
        pieces=pieces,
        replaces=target is None,
        may_change=may_change,
        images=store.images,
        bytes_needed=share_of_size(store, len(pieces)),
        notes=(*notes, *_left_behind(store)),
    )


def plan_reencode(store: EpisodeStore, *, images: str | None = None, target: Path | None = None) -> Plan:
    """The same episodes with the chunks and codecs that this version writes, and cameras kept as `images` says.

    Args:
        store: open for append unless a `target` is given.
        images: "arrays", "video" or "video_lossless"; None keeps what it is. "video" loses detail for good.
        target: a new store; None replaces `store`.

    Raises:
        DataError: for another word.
    """
    images = images or store.images
    keys = {*video_keys(store.spec, images), *video_keys(store.spec, store.images)}
    is_other = images != store.images
    encoded = {n for k, n in er.array_names(store.spec).items() if is_other and k.removeprefix("final/") in keys}
    arguments = {"images": images, "before": store.images}
    plan = edited(store, pieces_of(store, range(len(store))), "reencode", arguments=arguments, target=target)
    return replace(plan, images=images, encoded=frozenset(encoded))


def plan_merge(stores: Sequence[EpisodeStore], target: Path, *, skip_duplicates: bool = False) -> Plan:
    """The episodes of several stores, one store after the other; the sources stay as they are.

    Args:
        stores: two or more of the same spec.
        target: the new store.
        skip_duplicates: keep the first of each in place of refusing all.

    Raises:
        DataError: different specs (all differences printed), or duplicates (all named): the same id, or the same
            content under another id.
    """
    _require_same_spec(stores)
    firsts: dict[object, str] = {}
    pieces, duplicates = list[Piece](), list[str]()
    for store in stores:
        for piece in pieces_of(store, range(len(store))):
            content = tuple(value for name, value in piece.checksums.items() if name != er.TEXT)
            first = firsts.get(piece.uuid.tobytes()) or firsts.get(content)
            if first is not None:
                duplicates.append(f"{piece.name} is {first}")
                continue
            firsts[piece.uuid.tobytes()] = firsts[content] = piece.name
            pieces.append(piece)
    if duplicates and not skip_duplicates:
        raise DataError(
            f"{target}",
            expected="every episode once",
            got=f"{len(duplicates)} duplicates:\n  " + "\n  ".join(duplicates) + "\n",
            hint="Nothing was written. --skip-duplicates keeps the first of each.",
        )
    metadata, notes = _merged_metadata(stores)
    sources = [{**source_facts(store), "metadata": store.metadata} for store in stores]
    arguments = {"skip_duplicates": skip_duplicates, "left_out": duplicates}
    return Plan(
        target=target,
        spec=stores[0].spec,
        metadata=with_history(metadata, "merge", arguments=arguments, sources=sources),
        pieces=pieces,
        images=stores[0].images,
        bytes_needed=sum(size_on_disk(store.path) for store in stores),
        notes=(*notes, *(f"left out: {text}" for text in duplicates)),
    )


def plan_split(store: EpisodeStore, parts: Mapping[Path, str], *, seed: int | None = None) -> list[Plan]:
    """A new store for every part; the source stays as it is, and each episode is in one part.

    Args:
        store: the source.
        parts: target -> share: a count ("10"), a fraction ("0.8"), "rest", or "success" and "failure" (whether an
            episode had success at any step).
        seed: draws the episodes of each part at random; None takes them in order. Inside a part the order stays.

    Raises:
        DataError: when the shares do not add up, or a part would be empty.
        ConfigError: for a share that is none of these.
    """
    chosen = _shares(store, list(parts.values()), seed)
    empty = [str(target) for target, episodes in zip(parts, chosen, strict=True) if not episodes]
    if empty:
        raise DataError(
            f"{store.path}", expected="at least one episode in every part", got=f"none in {', '.join(empty)}",
            hint="Nothing was written.",
        )  # fmt: skip
    plans = []
    for (target, share), episodes in zip(parts.items(), chosen, strict=True):
        arguments = {"share": share, "seed": seed, "episodes": episodes}
        plans.append(edited(store, pieces_of(store, episodes), "split", arguments=arguments, target=target))
    return plans


def share_of_size(store: EpisodeStore, episodes: int) -> int:
    """Estimate of the bytes that so many of its episodes need on the disk."""
    return size_on_disk(store.path) * episodes // max(1, len(store))


def _left_behind(store: EpisodeStore) -> list[str]:
    """Arrays that another program put into the store: they have no checksums and are not copied."""
    known = er.array_layout(store.spec, store.path)
    found = (
        f"{folder.parent.name}/{folder.name}" for group in ("data", "meta") for folder in (store.path / group).iterdir()
    )
    return [
        f"{name} is no array of ours and is not copied"
        for name in sorted(found)
        if name not in known and not name.partition("/")[2].startswith(".")
    ]


def _shares(store: EpisodeStore, words: Sequence[str], seed: int | None) -> list[list[int]]:
    """Sorted episode indices of each part."""
    order = np.arange(len(store)) if seed is None else np.random.default_rng(seed).permutation(len(store))
    if set(words) <= {"success", "failure"}:
        if sorted(words) != ["failure", "success"]:
            raise _uneven(store, words, "both `success` and `failure`, each once")
        return [np.flatnonzero(store.success == (word == "success")).tolist() for word in words]
    counts = _counts(store, words)
    stops = np.cumsum(counts)
    return [
        sorted(order[stop - count : stop].tolist()) for count, stop in zip(counts, stops.tolist(), strict=True)
    ]  # fmt: skip


def _counts(store: EpisodeStore, words: Sequence[str]) -> list[int]:
    """Episodes of each part; fractions are rounded so that no episode is left over (largest remainder)."""
    total, numbers = len(store), list[float]()
    for word in words:
        try:
            numbers.append(0.0 if word == "rest" else float(word))
        except ValueError:
            numbers.append(-1.0)
        if not (word == "rest" or 0 < numbers[-1] < float("inf")):
            raise ConfigError(
                f"share {word!r}", expected="a count, a fraction with a point (0.8), `rest`, or `success` and `failure`",
                got=repr(word), hint="For example --into train.zarr=0.8 validation.zarr=rest.",
            )  # fmt: skip
    is_fraction = {"." in word for word in words if word != "rest"}
    if words.count("rest") > 1 or len(is_fraction) > 1:
        raise _uneven(store, words, "counts or fractions, not both, and at most one `rest`")
    has_rest, whole = "rest" in words, 1.0 if is_fraction == {True} else total
    if sum(numbers) > whole + 1e-9 or (not has_rest and sum(numbers) < whole - 1e-9):
        raise _uneven(store, words, f"shares that add up to {whole:g}" + (", or less with a `rest`" * has_rest))
    exact = [number * total if is_fraction == {True} else number for number in numbers]
    if has_rest:
        exact[list(words).index("rest")] = total - sum(exact)
    counts = [int(number + 1e-9) for number in exact]
    order = sorted(range(len(exact)), key=lambda part: counts[part] - exact[part])
    for part in order[: total - sum(counts)]:
        counts[part] += 1
    return counts


def _uneven(store: EpisodeStore, words: Sequence[str], expected: str) -> DataError:
    return DataError(
        f"{store.path}, {len(store)} episodes", expected=expected, got=", ".join(words),
        hint="Nothing was written. Every episode must be in one part.",
    )  # fmt: skip


def _require_same_spec(stores: Sequence[EpisodeStore]) -> None:
    first = stores[0]
    lines = [
        f"{store.path}: {line}"
        for store in stores[1:]
        for line in er.schema_differences(
            {**first.spec.to_json(), "images": first.images}, {**store.spec.to_json(), "images": store.images}
        )
    ]
    if lines:
        tables = "".join(table_of_semantics(store.spec, first.spec) for store in stores[1:])
        raise DataError(
            f"{', '.join(str(store.path) for store in stores)}",
            expected=f"the spec of {first.path} (`stored`) in all of them",
            got=f"{len(lines)} differences:{tables}\n  " + "\n  ".join(lines) + "\n",
            hint="Nothing was written. Data of another robot, task or rate can't be one dataset; actions that are only "
            "declared in another way can be converted (`robot-rl data convert`).",
        )


def _merged_metadata(stores: Sequence[EpisodeStore]) -> tuple[dict[str, Any], list[str]]:
    """What all sources say alike; the rest stays in the history, where each source has its whole metadata."""
    everything = [{k: v for k, v in store.metadata.items() if k != "history"} for store in stores]
    merged = {k: v for k, v in everything[0].items() if all(other.get(k) == v for other in everything[1:])}
    differing = sorted({key for one in everything for key in one} - merged.keys())
    notes = []
    if "card" in differing:
        cards = [dict(one.get("card", {})) for one in everything]
        merged["card"] = {k: v for k, v in cards[0].items() if all(k in c and c[k] == v for c in cards[1:])}
        for name in sorted({name for card in cards for name in card} - merged["card"].keys()):
            values = " | ".join(repr(card.get(name)) for card in cards)
            notes.append(f"card field {name!r} differs and was left out: {values}; set it with `robot-rl data relabel`")
        differing.remove("card")
    if differing:
        notes.append(f"metadata that differs is kept for each source in the history: {', '.join(differing)}")
    return merged, notes
