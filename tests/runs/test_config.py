"""Configuration: what is refused, what the refusal says, and that what is accepted comes back exactly."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from robot_rl.errors import ConfigError
from robot_rl.runs.composition import compose_config, group_choices
from robot_rl.runs.config import (
    build,
    config_to_json,
    config_to_yaml,
    convert_config,
    load_config,
    read_config,
    validate_component,
)


class Keep(str, Enum):
    all = "all"
    success = "success"


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    sizes: tuple[int, ...] = (64, 64)


@dataclass(frozen=True)
class Stage:
    env: dict[str, Any] = field(default_factory=dict)
    policy: str = ""
    optimizer: Optimizer = field(default_factory=Optimizer)
    keep: Keep = Keep.all
    num_steps: int = 10
    name: str | None = None
    extra: dict[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Required:
    dataset: str
    seed: int = 0


PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import NotImportable

class Mode(str, Enum):
    fast = "fast"
    slow = "slow"

@dataclass(frozen=True)
class BoxConfig:
    width: float
    mode: Mode = Mode.fast
    sides: tuple[int, ...] = (1, 2)

class Box:
    def __init__(self, config: BoxConfig, *, colour: NotImportable) -> None:
        self.config, self.colour = config, colour

def make_box(config: BoxConfig, *, colour: str) -> Box:
    return Box(config, colour=colour)

def bare(width: float) -> float:
    return width
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder of YAML files, and a plug-in module `house_plugin` beside it."""
    files = {
        "own.yaml": "defaults:\n  - env: small\n  - _self_\n  - experiment: null\nnum_steps: 20\n",
        "env/small.yaml": "_target_: house_plugin.make_box\nwidth: 1.5\n",
        "env/large.yaml": "_target_: house_plugin.Box\nwidth: 1e3\nmode: slow\n",
        "policy/mlp.yaml": "_target_: house_plugin.Box\nwidth: 1\n",
        "experiment/big.yaml": "# @package _global_\n"
        "defaults:\n  - override /env: large\nseed: 7\nenv:\n  sides: [4]\noptimizer:\n  learning_rate: 1e-4\n",
        "linked.yaml": "num_steps: 3\nseed: ${num_steps}\n",
        "leaky.yaml": "name: ${oc.env:HOME}\n",
    }
    for name, text in files.items():
        path = tmp_path / "yaml" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "house_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "house_plugin", raising=False)
    return tmp_path / "yaml"


def load(folder: Path, *overrides: str, name: str = "own") -> Stage:
    return load_config(Stage, list(overrides), name=name, config_dir=folder)


def test_yaml_overrides_and_defaults_meet(folder: Path) -> None:
    config = load(folder, "optimizer.learning_rate=3e-4", "keep=success", "optimizer.sizes=[8]", "+extra={a: [1, b]}")
    assert config == Stage(
        # The component comes back complete: the plug-in's defaults are filled in.
        env={"_target_": "house_plugin.make_box", "width": 1.5, "mode": "fast", "sides": [1, 2]},
        optimizer=Optimizer(learning_rate=3e-4, sizes=(8,)),
        keep=Keep.success,
        num_steps=20,
        extra={"a": [1, "b"]},
    )
    assert isinstance(config.keep, Keep)
    assert isinstance(config.optimizer.sizes, tuple)


def test_experiment_changes_group_and_values(folder: Path) -> None:
    config = load(folder, "experiment=big")
    assert config.env == {"_target_": "house_plugin.Box", "width": 1000.0, "mode": "slow", "sides": [4]}
    assert (config.seed, config.optimizer.learning_rate, config.num_steps) == (7, 1e-4, 20)
    assert load(folder, "experiment=big", "seed=9").seed == 9


def test_value_with_the_name_of_a_group(folder: Path) -> None:
    assert load(folder, "policy=runs/2026_x_s0").policy == "runs/2026_x_s0"


def test_our_groups_stand_behind_the_users_own(folder: Path) -> None:
    # The user's folder has no group `expert`, and no choice `point_reach` of `env`: both are ours.
    plain = compose_config(["+expert=point_reach", "env=point_reach"], name="own", config_dir=folder)
    assert plain["env"]["_target_"].startswith("robot_rl.envs.")
    assert plain["expert"]["_target_"].startswith("robot_rl.envs.")


def test_interpolation_of_another_key(folder: Path) -> None:
    assert load(folder, name="linked").seed == 3


@pytest.mark.parametrize(
    ("override", "where", "says"),
    [
        ("num_step=3", "own.num_step", "Did you mean 'num_steps'"),
        ("optimizer.learning_rat=3", "own.optimizer.learning_rat", "Did you mean 'learning_rate'"),
        ("env.widht=3", "own.env.widht", "Did you mean 'width'"),
        ("env.mode=fats", "own.env.mode", "Did you mean 'fast'? Valid: fast, slow"),
        ("keep=succes", "own.keep", "Did you mean 'success'? Valid: all, success"),
        ("num_steps=1.5", "own.num_steps", "expected int, got 1.5"),
        ("num_steps=many", "own.num_steps", "expected int, got 'many'"),
        ("num_steps=true", "own.num_steps", "expected int, got True"),
        ("num_steps=null", "own.num_steps", "expected int, got None"),
        ("optimizer.betas=[0.9]", "own.optimizer.betas", "expected tuple[float, float]"),
        ("optimizer.sizes=[1,x]", "own.optimizer.sizes[1]", "expected int, got 'x'"),
        ("optimizer=3", "own.optimizer", "expected Optimizer"),
        ("name=12", "own.name", "Quote it"),
        ("env=smal", "own: group 'env'", "Did you mean 'small'? Valid: bowling, large, peg_insertion, pick_cube"),
        ("experiment=bog", "own: group 'experiment'", "Valid: big"),
        ("env._target_=house_plugin.make_bx", "own.env._target_", "Did you mean 'make_box'"),
        ("env._target_=house_plugn.make_box", "own.env._target_", "There is no module 'house_plugn'"),
        ("env._target_=house_plugn.make_box", "own.env._target_", "`PYTHONPATH=. robot-rl ...`"),
        ("env._target_=house_plugin.bare", "own.env._target_", "first parameter is annotated with a dataclass"),
        ("seed", "own: overrides 'seed'", "missing EQUAL"),
        ("seed=1,2", "own: overrides 'seed=1,2'", "use key=[value1,value2]"),
        ("+name=${oc.env:HOME}", "own.name", "neither from environment variables"),
        ("name=${nowhere}", "own: overrides", "nowhere"),
    ],
)
def test_refusals_name_the_key_and_the_choices(folder: Path, override: str, where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load(folder, override)
    assert caught.value.where.startswith(where)
    assert caught.value.exit_code == 2


def test_resolver_in_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="neither from environment") as caught:
        load(folder, name="leaky")
    assert os.environ["HOME"] not in str(caught.value)


def test_unknown_config_and_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match="none for 'absent'"):
        load(folder, name="absent")
    with pytest.raises(ConfigError, match="no folder"):
        load(folder / "nowhere")


def test_required_field() -> None:
    with pytest.raises(ConfigError, match=r"own.dataset: expected a value, got none. Set dataset="):
        convert_config(Required, {"seed": 1}, where="own")
    with pytest.raises(ConfigError, match=r"own.dataset"):
        convert_config(Required, {"dataset": "???"}, where="own")
    assert convert_config(Required, {"dataset": "d"}, where="own") == Required("d")


def test_missing_component_value_is_named_at_load(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"own.env.width: expected a value"):
        load(folder, "~env.width")


def test_build_passes_config_and_runtime(folder: Path) -> None:
    node = {"_target_": "house_plugin.make_box", "width": 2, "sides": [5, 6]}
    box = build(node, colour="red")
    assert (box.colour, box.config.width, box.config.sides) == ("red", 2.0, (5, 6))
    target, config = validate_component({"_target_": "house_plugin.Box", "width": 2}, where="env")
    assert target(config, colour="blue").config.mode.value == "fast"
    with pytest.raises(ConfigError, match="component with `_target_`"):
        build({}, colour="red")


def test_missing_package_names_the_extra(folder: Path) -> None:
    (folder.parent / "needs_sim.py").write_text("import mani_skill_absent_part\n")
    with pytest.raises(ConfigError, match="pip install mani-skill-absent-part"):
        validate_component({"_target_": "needs_sim.x"}, where="env")
    from robot_rl.errors import missing_package

    for module, extra in [
        ("mani_skill.envs", "sim"),
        ("torch", "train"),
        ("hydra", "train"),
        ("onnxruntime", "export"),
    ]:
        assert f"'robot-rl[{extra}]'" in str(missing_package(module, where="x"))


def test_yaml_round_trip_is_exact(folder: Path, tmp_path: Path) -> None:
    config = load(
        folder, "experiment=big", "optimizer.learning_rate=0.1", "name='a: b # c'", "+extra={x: null, y: '1'}"
    )
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config))
    assert read_config(Stage, path) == config
    assert config_to_json(config)["keep"] == "all"
    path.write_text(path.read_text() + "old_key: 1\n")
    with pytest.raises(ConfigError, match="old_key"):
        read_config(Stage, path)


def test_groups_are_listed_with_the_users_own(folder: Path) -> None:
    groups = group_choices(folder)
    assert {"small", "large"} <= set(groups["env"])
    assert set(group_choices()["env"]) <= set(groups["env"])
    assert "small" not in group_choices()["env"]


def test_a_folder_of_groups_alone_is_enough(tmp_path: Path) -> None:
    """`--config-dir` needs no copy of the stage's own YAML; a choice of the user's wins over ours of the same name."""
    (tmp_path / "env").mkdir()
    (tmp_path / "env/mine.yaml").write_text("_target_: robot_rl.envs.point_reach.make_env\nmax_episode_steps: 7\n")
    (tmp_path / "env/pick_cube.yaml").write_text("_target_: robot_rl.envs.point_reach.make_env\nmax_episode_steps: 9\n")
    mine = compose_config(["env=mine"], name="evaluate", config_dir=tmp_path)
    assert mine["env"]["max_episode_steps"] == 7
    assert mine.keys() == compose_config([], name="evaluate").keys()
    assert compose_config(["env=pick_cube"], name="evaluate", config_dir=tmp_path)["env"]["max_episode_steps"] == 9
    assert compose_config(["env=pick_cube"], name="evaluate")["env"]["task"] == "PickCube-v1"
