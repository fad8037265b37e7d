"""docs/metrics.md has every metric that a stage's text and code name, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from doc_blocks import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
CURVES, _, SUMMARY = PAGE.partition("\n## summary.json")
STAGES = sorted((ROOT / "robot_rl" / "stages").glob("*.py"))
PREFIXES = [
    "imitate",
    "distill",
    "collect",
    "eval",
    "offline",
    "online",
    "export",
    "deploy",
    "baseline",
    "refine_teacher",
    "success",
]
METRIC = re.compile(rf"(?:{'|'.join(PREFIXES)})/[a-z0-9_]+\*?")
LISTED = set(re.findall(r"`([\w/*]+)`", PAGE))


def _of_text(path: Path) -> set[str]:
    """Metrics in the `Metrics (...)` section of a stage's docstring; `a/x, y` stands for a/x and a/y."""
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\nMetrics (")[2]
    found = set()
    for line in text.split("\n")[1:]:
        words = re.match(r"\s+((?:[\w/*]+, )*[\w/*]+)(?:\s{2,}|$| )", line)
        if words and "/" in words[1]:
            first, *others = words[1].split(", ")
            prefix = first.partition("/")[0]
            found |= {first} | {other if "/" in other else f"{prefix}/{other}" for other in others}
    return found


def _of_code(path: Path) -> set[str]:
    """Metric names that stand in the code as they are (those that are put together are in the text above)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.fullmatch(node.value):
            if node.value.endswith("_"):
                continue  # the beginning of names
            found.add(node.value)
    return found


def test_every_metric_of_a_stage_is_on_the_page() -> None:
    said = set().union(*(_of_text(path) for path in STAGES))
    assert len(said) > 70  # the reader of docstrings reads
    code = set().union(*(_of_code(path) for path in (ROOT / "robot_rl").rglob("*.py")))
    assert len(code) > 10
    assert sorted((said | code) - LISTED) == []


def test_the_page_names_no_metric_that_no_stage_knows() -> None:
    said = set().union(*(_of_text(path) for path in STAGES)) | set().union(*(_of_code(path) for path in STAGES))
    assert (
        sorted(each for each in re.findall(r"`([\w/*]+)`", CURVES) if METRIC.fullmatch(each) and each not in said) == []
    )


def _keys(node: ast.expr) -> set[str]:
    if isinstance(node, ast.Dict):
        return {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
    if isinstance(node, ast.BinOp):
        return _keys(node.left) | _keys(node.right)
    return _keys(node.body) | _keys(node.orelse) if isinstance(node, ast.IfExp) else set()


def _summary_keys(path: Path) -> set[str]:
    """Keys of what is called `summary`, and of what `summarize` and `_summary` return."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "summary":
                found |= _keys(node.value)
            if ast.unparse(target).startswith("summary[") and isinstance(target, ast.Subscript):
                found |= {str(target.slice.value)} if isinstance(target.slice, ast.Constant) else set()
        if isinstance(node, ast.FunctionDef) and node.name in ("summarize", "_summary"):
            found |= {
                key
                for part in ast.walk(node)
                if isinstance(part, ast.Return) and part.value
                for key in _keys(part.value)
            }
    return found


def test_every_key_of_a_summary_is_on_the_page() -> None:
    found = {key for path in (*STAGES, ROOT / "robot_rl" / "rollout.py") for key in _summary_keys(path)}
    assert len(found) > 60
    listed = set(re.findall(r"`(\w+)`", SUMMARY))
    assert sorted(found - listed) == []
