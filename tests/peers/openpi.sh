#!/usr/bin/env bash
# An environment of its own with openpi-client 0.1.2, for tests/deploy/test_server_openpi.py.
#   tests/peers/openpi.sh /tmp/peer_openpi && export ROBOT_RL_PEER_OPENPI=/tmp/peer_openpi/bin/python
# PYTHON chooses the interpreter (3.10 to 3.12: it wants numpy 1).
set -euo pipefail
target=${1:?usage: openpi.sh TARGET_FOLDER}
check='import importlib.metadata as m; assert m.version("openpi-client") == "0.1.2"; from openpi_client import action_chunk_broker, websocket_client_policy'
if [ -x "$target/bin/python" ] && "$target/bin/python" -c "$check" >/dev/null 2>&1; then
  echo "$target has openpi-client 0.1.2 already"
  exit 0
fi
[ -x "$target/bin/python" ] || "${PYTHON:-python3}" -m venv "$target"
"$target/bin/pip" install --quiet "openpi-client==0.1.2" typing_extensions
"$target/bin/python" -c "$check"
echo "openpi-client 0.1.2 is in $target"
