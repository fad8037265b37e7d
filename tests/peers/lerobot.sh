#!/usr/bin/env bash
# An environment of its own with lerobot 0.4.4, for tests/data/test_lerobot_peer.py, tests/peers/lerobot_speed.py,
# `robot-rl bench lerobot`, tests/policies/test_lerobot_diffusion_peer.py and tests/policies/test_lerobot_policy_peer.py
# (a policy of its own behind examples/teacher_servers/serve_lerobot.py).
#   tests/peers/lerobot.sh /tmp/peer_lerobot && export ROBOT_RL_PEER_LEROBOT=/tmp/peer_lerobot/bin/python
# PYTHON chooses the interpreter (3.10 or 3.11); TORCH_INDEX=https://download.pytorch.org/whl/cpu gets the small build of
# torch (lerobot 0.4.4 wants torch below 2.11).
set -euo pipefail
target=${1:?usage: lerobot.sh TARGET_FOLDER}
check='import importlib.metadata as m; assert m.version("lerobot") == "0.4.4"; import lerobot.datasets.lerobot_dataset, msgpack, websockets'
if [ -x "$target/bin/python" ] && "$target/bin/python" -c "$check" >/dev/null 2>&1; then
  echo "$target has lerobot 0.4.4 already"
  exit 0
fi
[ -x "$target/bin/python" ] || "${PYTHON:-python3}" -m venv "$target"
if [ -n "${TORCH_INDEX:-}" ]; then
  "$target/bin/pip" install --quiet "torch>=2.2.1,<2.11" "torchvision>=0.21,<0.26" --index-url "$TORCH_INDEX"
fi
"$target/bin/pip" install --quiet "lerobot==0.4.4" websockets msgpack
"$target/bin/python" -c "$check"
echo "lerobot 0.4.4 is in $target"
