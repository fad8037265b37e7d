"""README and docs say what is so: links, anchors, names in the tour, metrics, Python blocks; and the site builds."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from doc_blocks import PAGES, ROOT, Block, blocks

PYTHON = [block for block in blocks() if block.language == "python" and not block.why_not]
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!\\)\[[^\]\n]*\]\(([^)\s]+)\)")


def name(value: object) -> str:
    return value.where if isinstance(value, Block) else str(Path(str(value)).relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs both make them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    plain = [
        re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?:|mailto:", target):
            continue
        place, _, anchor = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def test_broken_links_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One thing: `x`\n\n```\n# no heading\n```\n")
    assert anchors(page) == {"one-thing-x"}
    assert LINK.findall("[a](b.md#c) and ![p](q.png)") == ["b.md#c", "q.png"]


@pytest.mark.parametrize("block", PYTHON, ids=name)
def test_python_blocks_compile_and_import_what_exists(block: Block) -> None:
    tree = ast.parse(block.text, block.where)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("robot_rl"):
            module = importlib.import_module(str(node.module))
            assert [a.name for a in node.names if not hasattr(module, a.name)] == [], block.where
        if isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(a.name) for a in node.names if a.name.startswith("robot_rl"))


def _defined(name: str, *texts: Block) -> dict[str, Any]:
    """What Python blocks define, one after the other, in a module of that name (which a checkpoint can name)."""
    module = ModuleType(name)
    sys.modules[name] = module
    for block in texts:
        exec(compile(block.text, block.where, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _page(name: str) -> dict[str, Any]:
    return _defined(f"page_{name}", *(block for block in PYTHON if block.where.startswith(f"docs/howto/{name}.md")))


def test_own_environment_of_the_page_keeps_the_contract() -> None:
    block = next(block for block in PYTHON if "class Slider:" in block.text)
    found = _defined("page_slider", block)
    checks = importlib.import_module("robot_rl.checks")
    make_env, config = found["make_env"], found["SliderConfig"]
    assert checks.check_env(lambda n: make_env(config(), num_envs=n, history=2)) == []


def test_own_encoder_of_the_page_keeps_the_contract() -> None:
    import torch

    from robot_rl.checks import check_policy
    from robot_rl.data.normalizer import Normalizer
    from robot_rl.envs.point_reach import PointReachConfig, make_env

    found = _page("own_encoder")
    spec = make_env(PointReachConfig(), num_envs=1, history=1).spec
    torch.manual_seed(0)
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    config = found["MyPolicyConfig"](observation_keys=tuple(spec.observation), hidden_width=32)
    policy = found["MyPolicy"](config, spec, Normalizer.identity(sizes)).eval()
    assert [f for f in check_policy(policy, spec) if f.severity.value == "error"] == []


def test_own_teacher_of_the_page_answers() -> None:
    from robot_rl.envs.point_reach import PointReachConfig, make_env

    found = _page("own_teacher")
    env = make_env(PointReachConfig(), num_envs=3, history=1)
    teacher = found["StillTeacher"](found["StillConfig"](), spec=env.spec, build=None, load=None)
    assert teacher.label(env.reset([0, 1, 2])).actions.shape == (3, 1, env.spec.action.size)


def test_own_dataset_page_prints_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    _page("own_dataset")
    assert "proprio" in capsys.readouterr().out


def _names_in(path: Path) -> set[str]:
    """Functions, classes and methods of a file, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


def test_tour_names_what_is_there() -> None:
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.+?) \|", text, re.MULTILINE)
    assert len(rows) > 35
    wrong = []
    for path, cell in rows:
        names = re.findall(r"`([\w.]+)`", cell)
        if not (ROOT / path).is_file() or not names:
            wrong.append(path)
            continue
        wrong += [f"{path}: {each}" for each in names if each not in _names_in(ROOT / path)]
    mentioned = re.findall(r"`((?:robot_rl|envs|policies|hardware|tests)/[\w/]+\.py)`", text)
    wrong += [path for path in mentioned if not (ROOT / path).is_file()]
    assert not wrong


def test_concepts_name_functions_that_exist() -> None:
    text = FENCE.sub("", (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8"))
    defined = set()
    for folder in ("algorithms", "fitting"):
        for path in (ROOT / "robot_rl" / folder).glob("*.py"):
            defined |= {each.rpartition(".")[2] for each in _names_in(path)}
    defined |= {each.rpartition(".")[2] for each in _names_in(ROOT / "policies" / "onestep.py")}
    called = [word for word in re.findall(r"\(`(\w+)`", text) + re.findall(r", `(\w+)`\)", text) if "/" not in word]
    assert len(called) > 8
    assert [word for word in called if word not in defined] == []


def _site_plugin() -> str:
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install 'robot-rl[docs]' (make docs does it)"
    return ""


@pytest.mark.slow
@pytest.mark.skipif(bool(_site_plugin()), reason=_site_plugin())
def test_site_builds_without_a_warning_or_an_external_asset(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    asset = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+")
    for page in (tmp_path / "site").rglob("*.html"):
        found = [link for link in asset.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in link]
        assert found == [], page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    assert "<math" in (tmp_path / "site" / "concepts.html").read_text(encoding="utf-8")
    assert "ControlLoop" in (tmp_path / "site" / "reference" / "deploy.html").read_text(encoding="utf-8")
