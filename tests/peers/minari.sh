#!/usr/bin/env bash
# An environment of its own with minari 0.5.3, for tests/data/test_minari_peer.py.
#   tests/peers/minari.sh /tmp/peer_minari && export ROBOT_RL_PEER_MINARI=/tmp/peer_minari/bin/python
# PYTHON chooses the interpreter (3.10 or newer).
set -euo pipefail
target=${1:?usage: minari.sh TARGET_FOLDER}
check='import importlib.metadata as m; assert m.version("minari") == "0.5.3"; import minari, h5py, jax, PIL'
if [ -x "$target/bin/python" ] && "$target/bin/python" -c "$check" >/dev/null 2>&1; then
  echo "$target has minari 0.5.3 already"
  exit 0
fi
[ -x "$target/bin/python" ] || "${PYTHON:-python3}" -m venv "$target"
"$target/bin/pip" install --quiet "minari[hdf5,create]==0.5.3" "gymnasium>=1.0,<1.5" pillow
"$target/bin/python" -c "$check"
echo "minari 0.5.3 is in $target"
