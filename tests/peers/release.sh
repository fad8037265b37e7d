#!/usr/bin/env bash
# What a user gets from PyPI: sdist and wheel of the last commit, made in isolation, the wheel made *from the sdist*, checked by
# twine, installed in a clean environment outside of the tree, and used: command line, doctor, a tiny pipeline to ONNX.
#   tests/peers/release.sh /tmp/release          (network; about 1.5 GB with torch for the CPU; minutes)
# PYTHON chooses the interpreter.
set -euo pipefail
target=${1:?usage: release.sh TARGET_FOLDER}
root=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$target" && mkdir -p "$target/tree"
git -C "$root" archive HEAD | tar x -C "$target/tree"
"${PYTHON:-python3}" -m venv "$target/tools"
"$target/tools/bin/pip" install --quiet --disable-pip-version-check build twine
"$target/tools/bin/python" -m build --outdir "$target/dist" "$target/tree" >"$target/build.log" 2>&1 || { tail -20 "$target/build.log"; exit 1; }
"$target/tools/bin/twine" check --strict "$target"/dist/*
ls -l "$target"/dist

"${PYTHON:-python3}" -m venv "$target/user"
"$target/user/bin/pip" install --quiet --disable-pip-version-check "$target"/dist/*.whl
cd "$target" # not in the tree: imports must come from the wheel
"$target/user/bin/robot-rl" --help | head -3
"$target/user/bin/python" -c 'import robot_rl.specs, robot_rl.deploy.safety, sys; assert "torch" not in sys.modules; print("numpy alone:", robot_rl.specs.__file__)'

"$target/user/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints/py311.txt" "$(echo "$target"/dist/*.whl)[train,export]"
"$target/user/bin/robot-rl" doctor || true # says what is not installed
run() { "$target/user/bin/robot-rl" "$@" run_root="$target/runs" --quiet --track none >/dev/null; }
run collect env=point_reach expert=point_reach num_episodes=20 dataset="$target/demos.zarr"
run imitate env=point_reach dataset="$target/demos.zarr" train.num_steps=200 train.checkpoint_every_steps=200
run export policy="$(echo "$target"/runs/*imitate*)" dataset="$target/demos.zarr"
run evaluate env=point_reach policy="$(echo "$target"/runs/*export*)/export/policy.onnx" num_episodes=10
"$target/user/bin/robot-rl" card "$target"/runs/*export* --evaluation "$target"/runs/*evaluate* | head -30
echo "the wheel works"
