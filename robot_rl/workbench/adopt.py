"""Declare a policy of another project: `robot-rl adopt FOLDER --env pick_cube --name <theirs>=<ours>`.

LeRobot's diffusion policies (0.4.4; config.json, model.safetensors and two processors, as its save_pretrained writes them) say
how large their inputs and actions are, not what they mean. This builds the policy once, checks it against the environment, and
writes FOLDER/robot_rl.json: which of LeRobot's inputs is which of our observations, and the environment's spec. From then on
FOLDER is a policy for evaluate, export, rti tune and serve, and an environment of another meaning is refused (docs/rti.md).

    robot-rl adopt runs/theirs --env pick_cube --name observation.state=proprio --name observation.environment_state=state
    robot-rl adopt runs/theirs --dataset datasets/demos.zarr --name observation.state=proprio \\
        --name observation.images.top=image/top --steps 10 --mode eta0          # DDIM-10 whatever config.json says
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError, PolicyError
from robot_rl.runs.adopted import DECLARATION, built, declare, document_of
from robot_rl.runs.config import build
from robot_rl.runs.directory import read_json
from robot_rl.specs import EnvSpec

# Components by what config.json calls its policy; their fields are those of the target's configuration.
LOADERS = {"diffusion": "robot_rl.policies.lerobot_diffusion.load_lerobot"}


def main(words: Sequence[str]) -> int:
    """Check, write the declaration, and print what the policy is.

    Raises:
        ConfigError: wrong words.
        PolicyError: no checkpoint that is known, or one that does not fit the environment; nothing is written.
        RobotRlError: the environment or the dataset can't be opened.
    """
    asked = _parser().parse_intermixed_args(list(words))
    config = read_json(asked.folder / "config.json")
    kind = config.get("type") if isinstance(config, dict) else None
    if kind not in LOADERS:
        raise PolicyError(
            str(asked.folder / "config.json"), expected=f"type {' or '.join(LOADERS)}", got=repr(kind),
            hint="Other policies of LeRobot are served from its own environment: docs/teachers.md.",
        )  # fmt: skip
    target = asked.folder / DECLARATION
    if target.exists() and not asked.overwrite:
        raise ConfigError(
            str(target), expected="no declaration yet", got="one", hint="Give --overwrite to write another."
        )
    names = dict(asked.name)
    if len(names) < len(asked.name):
        raise ConfigError(
            "adopt --name", expected="every input once", got=" ".join(f"{theirs}={ours}" for theirs, ours in asked.name),
            hint="Leave one of the two out.",
        )  # fmt: skip
    component = {"_target_": LOADERS[kind], "names": names, "num_steps": asked.steps, "mode": asked.mode}
    policy, _ = built(document_of(component, _spec(asked)), asked.folder)
    declare(asked.folder, component, policy.spec)  # what the policy does not see is left out
    print(
        f"{target}\n{policy.sampling}; observations {', '.join(policy.config.observation_keys)}, history {policy.config.history},"
    )
    print(f"chunk of {policy.config.horizon}, {policy.config.execute} executed, for {policy.spec.env_id}")
    return 0


def _spec(asked: argparse.Namespace) -> EnvSpec:
    if (asked.env is None) == (asked.dataset is None):
        raise ConfigError(
            "adopt", expected="--env <choice> or --dataset <store>", got="both" if asked.env else "neither",
            hint="The spec says what the numbers mean; it comes from the environment, or from data recorded in it.",
        )  # fmt: skip
    if asked.dataset is not None:
        from robot_rl.data.store import EpisodeStore

        if asked.words:
            raise ConfigError(
                "adopt", expected="no env.key=value with --dataset", got=str(asked.words), hint="Drop them."
            )
        with EpisodeStore.open(asked.dataset, mode="r") as store:
            spec: EnvSpec = store.spec
        return spec
    from robot_rl.workbench.judge_play import environment

    built = build(environment(asked.env, asked.words), num_envs=1, history=1)
    try:
        found: EnvSpec = built.spec
    finally:
        built.close()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl adopt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="as LeRobot's save_pretrained wrote it")
    parser.add_argument("words", nargs="*", help="env.key=value")
    parser.add_argument("--env", help="config choice of the environment that it acts in")
    parser.add_argument("--dataset", help="in place of --env: EpisodeStore that was recorded there")
    parser.add_argument("--name", type=_pair, action="append", default=[], metavar="THEIRS=OURS", help="of every input")
    parser.add_argument("--steps", type=int, help="denoising steps, in place of the checkpoint's own")
    parser.add_argument("--mode", choices=("eta0", "eta1"), help="DDIM or DDPM, in place of the checkpoint's own")
    parser.add_argument("--overwrite", action="store_true", help="replace a declaration")
    return parser


def _pair(text: str) -> tuple[str, Any]:
    theirs, separator, ours = text.partition("=")
    if not (theirs and separator and ours):
        raise argparse.ArgumentTypeError(f"THEIRS=OURS expected, got {text!r}")
    return theirs, ours
