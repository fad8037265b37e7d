"""`robot-rl data convert STORE TARGET ...`: the same episodes under another declaration, in a new store.

    --rotation rot6d                             rotations of the action; rotvec, quat_wxyz, quat_xyzw, rot6d or matrix
    --observation proprio=18:22:quat_wxyz:rot6d  a rotation in an observation
    --kind absolute --measured proprio=0:7       joint deltas to targets, or --kind delta --reference target back
    --measured proprio=18:25:quat_wxyz           the same for a pose: x y z and a rotation
    --gripper "0 closed .. 1 open"               the range of the gripper

Only what the data declare is converted (`robot-rl data info STORE`); Euler angles are read and never written. The new store
holds both declarations in its history. Policies and environments of another declaration refuse it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from robot_rl.data.conversion import Conversion, Measured, Turned
from robot_rl.data.converting import plan_convert
from robot_rl.data.rewriting import carry_out
from robot_rl.data.rotations import SIZES
from robot_rl.data.same_spec import declarations
from robot_rl.data.store import EpisodeStore
from robot_rl.runs.progress import Progress
from robot_rl.workbench.data_edit import report_text


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: "convert" and what stands behind it.
    """
    asked = _parser().parse_args(list(words[1:]))
    conversion = Conversion(
        rotation=asked.rotation,
        kind=asked.kind,
        reference=asked.reference,
        gripper=asked.gripper,
        measured=asked.measured,
        observations=tuple(asked.observation),
        control_mode=asked.control_mode,
        rotation_at=None if asked.rotation_at is None else tuple(asked.rotation_at),
        gripper_at=None if asked.gripper_at is None else tuple(asked.gripper_at),
    )
    with EpisodeStore.open(asked.store, mode="r") as store:
        plan = plan_convert(store, asked.target, conversion)
        table = declarations(store.spec.action_semantics, plan.spec.action_semantics)
        with Progress("convert", total=len(store)) as progress:
            (report,) = carry_out([plan], dry_run=asked.dry_run, on_episode=lambda done, total: progress.advance(1))
    if asked.json:
        print(json.dumps(asdict(report) | {"spec": plan.spec.to_json()}))
    else:
        print(f"{report_text(report)}\n{table.replace('wanted', 'new   ')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl data convert", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("store", type=Path)
    parser.add_argument("target", type=Path, help="the new store")
    parser.add_argument("--rotation", metavar="NAME", help=f"of the action: {', '.join(SIZES)}")
    parser.add_argument(
        "--observation", type=_turned, action="append", default=[], metavar="KEY=START:STOP:GIVEN:WANTED",
        help="a rotation in an observation; may be given several times",
    )  # fmt: skip
    parser.add_argument("--kind", choices=("absolute", "delta"), help="of the action")
    parser.add_argument("--reference", choices=("measured", "target"), help="what a delta is added to")
    parser.add_argument(
        "--measured", type=_measured, metavar="KEY=START:STOP[:ROTATION]", help="what measures the action, for --kind"
    )
    parser.add_argument("--gripper", metavar="TEXT", help='for example "0 closed .. 1 open"')
    parser.add_argument(
        "--control-mode", metavar="NAME", help="the driver's name of the mode that takes the new actions"
    )
    parser.add_argument("--rotation-at", type=int, nargs="+", metavar="N", help="first element of each rotation")
    parser.add_argument("--gripper-at", type=int, nargs="+", metavar="N", help="elements that move grippers")
    parser.add_argument("--dry-run", action="store_true", help="read, convert and check everything, write nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _place(text: str, parts: int, form: str) -> list[str]:
    key, equals, rest = text.partition("=")
    words = rest.split(":")
    if (
        not equals
        or len(words) not in (parts, parts - (form.endswith("]")))
        or not all(w.isdecimal() for w in words[:2])
    ):
        raise argparse.ArgumentTypeError(f"expected {form}, got {text!r}")
    return [key, *words]


def _measured(text: str) -> Measured:
    key, first, stop, *rotation = _place(text, 3, "KEY=START:STOP[:ROTATION]")
    return Measured(key, int(first), int(stop), *rotation)


def _turned(text: str) -> Turned:
    key, first, stop, given, wanted = _place(text, 4, "KEY=START:STOP:GIVEN:WANTED")
    return Turned(key, int(first), int(stop), given, wanted)
