#!/usr/bin/env bash
# A robot computer's environment: Python 3.10 (as on ROS 2 Humble), no torch, the extra `ros2`, onnxruntime and ROS 2 wheels.
#   tests/peers/robot_computer.sh /tmp/peer_robot && export ROBOT_RL_PEER_ROBOT=/tmp/peer_robot/bin/python
# PYTHON chooses the interpreter.
set -euo pipefail
target=${1:?usage: robot_computer.sh TARGET_FOLDER}
root=$(cd "$(dirname "$0")/../.." && pwd)
check='import sys, rclpy, ruckig, onnxruntime, robot_rl; assert sys.version_info[:2] == (3, 10)'
if [ -x "$target/bin/python" ] && "$target/bin/python" -c "$check" >/dev/null 2>&1; then
  echo "$target is a robot computer already"
  exit 0
fi
[ -x "$target/bin/python" ] || "${PYTHON:-python3.10}" -m venv "$target"
"$target/bin/pip" install --quiet --disable-pip-version-check wheel
"$target/bin/pip" install --quiet --disable-pip-version-check -e "$root[ros2]" "onnxruntime>=1.20,<1.24" -r "$root/constraints/ros2-jazzy.txt"
"$target/bin/python" -c "$check"
echo "a robot computer is in $target"
