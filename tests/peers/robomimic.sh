#!/usr/bin/env bash
# An environment of its own with robomimic 0.3.0, for tests/data/test_robomimic_peer.py and tests/peers/robomimic_speed.py.
#   tests/peers/robomimic.sh /tmp/peer_robomimic && export ROBOT_RL_PEER_ROBOMIMIC=/tmp/peer_robomimic/bin/python
# PYTHON chooses the interpreter (3.10 or 3.11); TORCH_INDEX=https://download.pytorch.org/whl/cpu gets the small build of
# torch. robomimic builds egl_probe with cmake and g++.
set -euo pipefail
target=${1:?usage: robomimic.sh TARGET_FOLDER}
check='import importlib.metadata as m; assert m.version("robomimic") == "0.3.0"; import robomimic.utils.dataset'
if [ -x "$target/bin/python" ] && "$target/bin/python" -c "$check" >/dev/null 2>&1; then
  echo "$target has robomimic 0.3.0 already"
  exit 0
fi
[ -x "$target/bin/python" ] || "${PYTHON:-python3}" -m venv "$target"
# shellcheck disable=SC2086
"$target/bin/pip" install --quiet "torch>=2.11,<2.15" "torchvision>=0.26,<0.30" ${TORCH_INDEX:+--index-url $TORCH_INDEX}
"$target/bin/pip" install --quiet "numpy>=1.26,<2" "h5py>=3.10,<4" six cmake setuptools wheel
"$target/bin/pip" install --quiet "robomimic==0.3.0"
"$target/bin/python" -c "$check"
echo "robomimic 0.3.0 is in $target"
