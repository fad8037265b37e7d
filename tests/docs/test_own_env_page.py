"""The page about an environment of one's own, followed to its end: files as they stand there, commands as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from doc_blocks import ROOT

from robot_rl import cli
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.stages.imitate import sight

PAGE = (ROOT / "docs" / "own_env_and_policy.md").read_text(encoding="utf-8")
FILE = re.compile(r"```(?:python|yaml)\n# (my_\S+)\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"test_own_env_page.py .*?-->\n```\n(.*?)```", re.DOTALL)


@pytest.mark.slow  # ten seconds and more on a busy machine
def test_files_and_commands_of_the_page_end_in_a_policy_that_solves_the_task(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in FILE.findall(PAGE):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    (found,) = COMMANDS.findall(PAGE)
    lines = found.strip().splitlines()
    assert [line.split()[1] for line in lines] == ["check", "collect", "imitate", "evaluate"]
    for line in lines:
        made = next(iter(Path("runs/slider").glob("*")), "")
        words = shlex.split(line.replace("$(ls -d runs/slider/*)", str(made)))
        capsys.readouterr()
        assert cli.main(words[1:] + (["--json"] if words[1] == "evaluate" else [])) == 0
    (log,) = Path("runs/slider").glob("*/log.txt")
    assert log.read_text().count("the policy sees proprio\n") == 1
    assert json.loads(capsys.readouterr().out)["success_once"]["k"] >= 90  # of 100; 0 with a policy that does not see


def test_what_a_policy_does_not_see_is_said() -> None:
    spec = EnvSpec(
        env_id="E",
        observation={key: ArraySpec(key, (1,)) for key in ("proprio", "state", "points")},
        action=ArraySpec("action", (1,)),
        action_semantics=ActionSemantics(ActionKind.velocity, DeltaReference.none, "joint", "none", "none", "push"),
        joint_names=(),
        robot="r",
        control_hz=10.0,
        max_episode_steps=5,
    )
    assert sight(spec, ("state",)) == (
        "the policy sees state; it does not see proprio, points (policy.observation_keys)"
    )
    assert sight(spec, ("proprio", "state", "points")) == "the policy sees proprio, state, points"
