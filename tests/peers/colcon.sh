#!/usr/bin/env bash
# colcon from PyPI in an environment of its own: tests/peers/colcon.sh FOLDER prints its colcon. Needs the main .venv's
# ROS 2 wheels only when something built is run.
set -euo pipefail
folder="${1:?usage: tests/peers/colcon.sh FOLDER}"
if ! [ -x "$folder/bin/colcon" ]; then
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check 'setuptools<80' colcon-core colcon-ros colcon-python-setup-py \
    colcon-recursive-crawl colcon-library-path colcon-bash colcon-output colcon-metadata colcon-package-selection \
    colcon-parallel-executor
fi
echo "$folder/bin/colcon"
