"""The page of `robot-rl data view`: one HTML text with an episode strip, plots and film strips, and nothing from outside."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from robot_rl.algorithms.throughput import runs_of
from robot_rl.data.element_names import names_of, units_of
from robot_rl.data.store import EpisodeStore
from robot_rl.runs import report_plots
from robot_rl.runs.report_data import film_strips
from robot_rl.runs.report_page import whole_page
from robot_rl.runs.report_plots import FAILURE, SUCCESS
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import Episode, Source

SOURCE_COLOURS = {
    Source.teleop: "#1f9e8f", Source.scripted: "#7a8794", Source.policy: "#8a5cc9", Source.intervention: "#d6a21e",
}  # fmt: skip
STRIP_EPISODES = 1000
PLOTTED_ELEMENTS = 24
_MOST_POINTS = 400
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#5b6570;--line:#d9dee3;--paper:#fff;--accent:#2f86d6}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#9aa5b1;--line:#353c44;--paper:#14171a}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1060px;padding:28px 20px 60px;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;overflow-wrap:anywhere}
h1{font-size:22px;margin:0}h2{font-size:17px;margin:34px 0 8px;border-bottom:1px solid var(--line);padding-bottom:4px}
h3{font-size:15px;margin:18px 0 4px}p{margin:6px 0}.soft,figcaption{color:var(--soft);font-size:13px}
a{color:var(--accent)}svg{max-width:100%;height:auto;display:block}figure{margin:10px 0}
img{width:100%;border-radius:4px;display:block;image-rendering:auto}
table{border-collapse:collapse;font-size:14px}th{text-align:left;font-weight:600;color:var(--soft);padding:3px 16px 3px 0;
vertical-align:top;white-space:nowrap}td{padding:3px 0}
pre{font-size:12.5px;white-space:pre-wrap;margin:4px 0}summary{cursor:pointer;color:var(--soft);font-size:13px}
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 4px 0 0}
.mark{white-space:nowrap;margin-right:12px}
.plot{overflow-x:auto}.plot svg{min-width:720px}
.strip{overflow-x:auto}.strip svg{max-width:none}
"""


@dataclass(frozen=True)
class Bar:
    """One episode in the strip.

    Attributes:
        number: of the episode.
        steps: its length.
        success: at any step.
        sources: code -> share of its steps.
    """

    number: int
    steps: int
    success: bool
    sources: Mapping[int, float]


def view_html(
    store: EpisodeStore, bars: Sequence[Bar], episodes: Mapping[int, Episode], *, title: str, said: str
) -> str:
    """The whole page.

    Args:
        store: the dataset.
        bars: of the strip, in order.
        episodes: those that are drawn.
        title: of the page.
        said: one sentence on what is shown and what was left out.
    """
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(said)}</p>',
        f"<h2>Episodes</h2>{_legend()}" + _strip(bars, frozenset(episodes)),
        *(_episode(number, episode, store.spec, list(episodes)) for number, episode in episodes.items()),
        "<h2>Dataset</h2>" + _facts(store),
    ]
    return whole_page(title, style=_STYLE, parts=body)


def _legend() -> str:
    marks = [(SUCCESS, "success"), (FAILURE, "failure")]
    marks += [(colour, source.name) for source, colour in SOURCE_COLOURS.items()]
    keys = [
        f'<span class="mark"><span class="key" style="background:{colour}"></span>{text}</span> '
        for colour, text in marks
    ]
    text = "Height: length in steps. Foot: who acted. Underlined numbers are drawn below."
    return f'<p class="soft">{text}<br>{"".join(keys[:2])}<br>foot: {"".join(keys[2:])}</p>'


def _strip(bars: Sequence[Bar], drawn: frozenset[int]) -> str:
    """A bar an episode, its foot coloured by who acted; the drawn ones link to their plots."""
    if not bars:
        return "<p>No episodes.</p>"
    width = max(4.0, min(34.0, 980 / len(bars)))
    tall, foot, top = 110, 8, 4
    longest = max(bar.steps for bar in bars)
    every = max(1, -(-len(bars) // 25), int(-(-30 // width)))
    parts = []
    for index, bar in enumerate(bars):
        x, height = index * width, max(2.0, tall * bar.steps / longest)
        colour = SUCCESS if bar.success else FAILURE
        edge = "" if bar.success or width < 10 else ' stroke="currentColor" stroke-dasharray="2 2" stroke-width=".8"'
        outcome = "success" if bar.success else "failure"
        shape = (
            f'<rect x="{x + 0.5:.1f}" y="{top + tall - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}" '
            f'fill="{colour}"{edge}><title>episode {bar.number}: {bar.steps} steps, {outcome}</title></rect>'
        )
        at = x + 0.5
        for code, share in bar.sources.items():
            shape += (
                f'<rect x="{at:.2f}" y="{top + tall + 2}" width="{share * (width - 1):.2f}" height="{foot}" '
                f'fill="{SOURCE_COLOURS[Source(code)]}"/>'
            )
            at += share * (width - 1)
        if bar.number in drawn or index % every == 0:
            line = ' text-decoration="underline" font-weight="700"' if bar.number in drawn else ""
            y = top + tall + foot + (16 if index % every == 0 else 28)
            shape += (
                f'<text x="{x + width / 2:.1f}" y="{y}" text-anchor="middle" font-size="10" fill="currentColor"{line}>'
                f"{bar.number}</text>"
            )
        parts.append(f'<a href="#episode-{bar.number}">{shape}</a>' if bar.number in drawn else shape)
    size = f'width="{len(bars) * width + 24:.0f}" height="{tall + foot + 36}"'
    caption = f"<figcaption>the longest has {longest} steps</figcaption>"
    return f'<figure><div class="strip"><svg {size} role="img">{"".join(parts)}</svg></div>{caption}</figure>'


def _episode(number: int, episode: Episode, spec: EnvSpec, drawn: Sequence[int]) -> str:
    outcome = "success" if episode.success.any() else "failure"
    end = "terminated" if episode.terminated else "truncated" if episode.truncated else "cut by a person"
    place = drawn.index(number)
    near = [(drawn[i], word) for i, word in ((place - 1, "previous"), (place + 1, "next")) if 0 <= i < len(drawn)]
    links = " · ".join([*(f'<a href="#episode-{n}">{word} ({n})</a>' for n, word in near), '<a href="#">top</a>'])
    hits = np.flatnonzero(episode.success)
    sources = ", ".join(Source(int(code)).name for code in np.unique(episode.source))
    seconds = float(episode.time[-1] - episode.time[0])
    said = f"{len(episode)} steps, {seconds:.2f} s, {outcome}"
    said += f" first at step {hits[0]}" if hits.size else ""
    said += f", {end}; acted: {sources}; reward sum {float(episode.reward.sum()):g}"
    parts = [f'<h2 id="episode-{number}">Episode {number}</h2><p class="soft">{escape(said)} · {links}</p>']
    for strip in film_strips(episode, spec, index=number):
        caption = f"{strip.camera.removeprefix('image/')}, steps {', '.join(map(str, strip.steps))}"
        image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{report_plots.png_base64(strip.image)}">'
        parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
    for key, array, rows in (
        ("action", spec.action, episode.action),
        *((key, array, episode.observation[key]) for key, array in spec.observation.items() if key == "proprio"),
    ):
        parts.append(f"<h3>{escape(key)}</h3>{_plots(key, array, np.asarray(rows), episode, number)}")
    metadata = json.dumps(dict(episode.metadata), indent=2)
    parts.append(f"<details><summary>metadata</summary><pre>{escape(metadata)}</pre></details>")
    return "\n".join(parts)


def _plots(key: str, array: ArraySpec, rows: np.ndarray, episode: Episode, number: int) -> str:
    flat = rows.reshape(len(rows), -1)
    shown = min(flat.shape[1], PLOTTED_ELEMENTS)
    names, units = names_of(array), units_of(array)
    time = episode.time - episode.time[0]
    picked = np.unique(np.linspace(0, len(flat) - 1, min(len(flat), _MOST_POINTS)).round().astype(int))
    hits, taken_over = np.flatnonzero(episode.success), episode.source == Source.intervention

    def draw(axes: Any, element: int) -> None:
        axes.plot(time[picked], flat[picked, element], color=SUCCESS, linewidth=1.2)
        for begin, stop in runs_of(taken_over):
            late = time[stop] if stop < len(time) else time[-1]
            axes.axvspan(time[begin], late, color=SOURCE_COLOURS[Source.intervention], alpha=0.3, linewidth=0)
        if hits.size:
            axes.axvline(time[hits[0]], color=FAILURE, linewidth=1.2, linestyle="--")
        name = names[element] if len(names[element]) <= 38 else f"{names[element][:37]}…"
        axes.set_title(f"{element}  {name}", loc="left", fontsize=8.5)
        if units[element] not in ("", "1"):
            axes.set_ylabel(textwrap.fill(units[element], 15), fontsize=8)
        axes.locator_params(axis="both", nbins=4)
        axes.margins(x=0.01)

    drawings: list[Callable[[Any], None]] = [lambda axes, e=e: draw(axes, e) for e in range(shown)]  # type: ignore[misc]
    columns = min(4, shown)
    figure = report_plots.panels(drawings, name=f"{number}/{key}", columns=columns, width=10.4 / columns, height=1.5)
    more = f"; {flat.shape[1] - shown} more elements are not drawn" if shown < flat.shape[1] else ""
    thinned = f"; {len(picked)} of {len(flat)} steps are drawn" if len(picked) < len(flat) else ""
    caption = f"over seconds; dashed: first success; shaded: intervention{more}{thinned}"
    return f'<figure><div class="plot">{figure}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _facts(store: EpisodeStore) -> str:
    spec = store.spec
    meaning = spec.action_semantics
    rows = {
        "path": str(store.path),
        "task": spec.env_id,
        "robot": spec.robot,
        "declared rate": f"{spec.control_hz:g} Hz",
        "episodes": f"{len(store)}, {int(store.success.sum())} with success",
        "steps": f"{int(store.lengths.sum())}, at most {spec.max_episode_steps} an episode",
        "action": f"{meaning.kind.value}, {meaning.control_mode}, frame {meaning.frame}",
        "rotation, gripper": f"{meaning.rotation}; {meaning.gripper}",
        "observation": ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in spec.observation.items()),
        "content hash": store.content_hash(),
    }
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    metadata = escape(json.dumps(store.metadata, indent=2))
    return f"<table>{table}</table><details><summary>metadata</summary><pre>{metadata}</pre></details>"
