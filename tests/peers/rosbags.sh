#!/usr/bin/env bash
# An environment of its own with rosbags 0.11.9, for tests/data/test_rosbags_peer.py.
#   tests/peers/rosbags.sh /tmp/peer_rosbags && export ROBOT_RL_PEER_ROSBAGS=/tmp/peer_rosbags/bin/python
# PYTHON chooses the interpreter (3.11 or 3.12).
set -euo pipefail
target=${1:?usage: rosbags.sh TARGET_FOLDER}
check='import importlib.metadata as m; assert m.version("rosbags") == "0.11.9"'
if [ -x "$target/bin/python" ] && "$target/bin/python" -c "$check" >/dev/null 2>&1; then
  echo "$target has rosbags 0.11.9 already"
  exit 0
fi
[ -x "$target/bin/python" ] || "${PYTHON:-python3}" -m venv "$target"
"$target/bin/pip" install --quiet "rosbags==0.11.9"
"$target/bin/python" -c "$check"
echo "rosbags 0.11.9 is in $target"
