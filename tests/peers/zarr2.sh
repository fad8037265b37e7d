#!/usr/bin/env bash
# An environment of its own with zarr 2.18.7, for tests/data/test_zarr2_peer.py.
#   tests/peers/zarr2.sh /tmp/peer_zarr2 && export ROBOT_RL_PEER_ZARR2=/tmp/peer_zarr2/bin/python
# PYTHON chooses the interpreter (3.11 or 3.12).
set -euo pipefail
target=${1:?usage: zarr2.sh TARGET_FOLDER}
check='import zarr; assert zarr.__version__ == "2.18.7"'
if [ -x "$target/bin/python" ] && "$target/bin/python" -c "$check" >/dev/null 2>&1; then
  echo "$target has zarr 2.18.7 already"
  exit 0
fi
[ -x "$target/bin/python" ] || "${PYTHON:-python3}" -m venv "$target"
# zarr 2 needs numcodecs below 0.16.
"$target/bin/pip" install --quiet "zarr==2.18.7" "numcodecs<0.16" "numpy<2"
"$target/bin/python" -c "$check"
echo "zarr 2.18.7 is in $target"
