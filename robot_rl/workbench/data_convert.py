"""`robot-rl data convert STORE TARGET ...`: the same episodes under another declaration, in a new store.

    --rotation rot6d                             rotations of the action; rotvec, quat_wxyz, quat_xyzw, rot6d or matrix
    --observation proprio=18:22:quat_wxyz:rot6d  a rotation in an observation
    --kind absolute --measured proprio=0:7       joint deltas to targets, or --kind delta --reference target back
    --measured proprio=18:25:quat_wxyz           the same for a pose: x y z and a rotation
    --gripper "0 closed .. 1 open"               the range of the gripper
    --points 512 --points-low 0.2 -0.6 0 --points-high 1.2 0.6 0.6
                                                 recorded clouds or depths to a fixed number of points, as live

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
from robot_rl.data.recorded_points import PointSource
from robot_rl.data.rewriting import carry_out
from robot_rl.data.rotations import SIZES
from robot_rl.data.same_spec import declarations
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.point_cloud import PointCloudConfig, Sampling
from robot_rl.errors import ConfigError
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
        points=_points(asked),
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
    _add_points(parser)
    parser.add_argument("--dry-run", action="store_true", help="read, convert and check everything, write nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


_BOX = {"points_low": "low_m", "points_high": "high_m"}
_POINTS = _BOX | {"points_voxel": "voxel_m", "points_sampling": "sampling", "points_seed": "seed"}


def _add_points(parser: argparse.ArgumentParser) -> None:
    """What of an env's `points` block the data shall get."""
    parser.add_argument("--points", type=int, metavar="M", help="points in every cloud (deploy/point_cloud.py)")
    for name, text in {"low": "smallest", "high": "largest"}.items():
        parser.add_argument(
            f"--points-{name}", type=float, nargs=3, metavar="X", help=f"{text} x y z that is kept, base frame, m"
        )
    parser.add_argument("--points-voxel", type=float, metavar="M", help="edge of the voxels, m (0: none)")
    parser.add_argument("--points-sampling", choices=[s.value for s in Sampling], help="(farthest)")
    parser.add_argument("--points-seed", type=int, metavar="N", help="of the sampling (0)")
    parser.add_argument("--points-no-colour", action="store_true", help="x, y, z alone")
    parser.add_argument(
        "--points-camera", action="append", default=[], metavar="NAME", help="depth/NAME; may be given several times"
    )


def _points(asked: argparse.Namespace) -> PointSource | None:
    given = {field: getattr(asked, name) for name, field in _POINTS.items() if getattr(asked, name) is not None}
    if asked.points is None:
        if given or asked.points_no_colour or asked.points_camera:
            raise ConfigError(
                "data convert", expected="--points M with the other --points-...", got="no --points",
                hint="E.g. --points 512.",
            )  # fmt: skip
        return None
    given |= {field: tuple(given[field]) for field in _BOX.values() if field in given}
    if "sampling" in given:
        given["sampling"] = Sampling(given["sampling"])
    cloud = PointCloudConfig(num_points=asked.points, use_colour=not asked.points_no_colour, **given)
    return PointSource(cloud, tuple(asked.points_camera))


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
