"""The comparison of `robot-rl bench data` as a table for docs/results, with every peer that is named:

    ROBOT_RL_PEER_ROBOMIMIC=... ROBOT_RL_PEER_LEROBOT=... .venv/bin/python tests/peers/loaders.py --output loaders.json

Peers run in environments of their own (lerobot.sh, robomimic.sh). `robot-rl bench data` also watches the machine's load.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import date
from pathlib import Path

from robot_rl.runs.provenance import cpu_model
from robot_rl.workbench import bench_data
from robot_rl.workbench.bench import ratios
from robot_rl.workbench.bench_timing import Options


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=bench_data.MOST_ROUNDS, help="of every loader, in turns")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    report = bench_data.run(Options(rounds=asked.rounds))
    faster = {one["peer"]: round(one["ratio"], 1) for one in ratios(report)}
    rows = []
    for one in report.measurements:
        data, _, loader = one.name.partition(": ")
        rows.append({
            "data": data, "loader": loader, "windows_per_s": round(one.rate), "epoch_s": round(one.work / one.rate, 3),
            "ours against it": faster.get(one.name, 1.0),
        })  # fmt: skip
    for missing in report.facts["peers_not_named"]:
        print(f"{missing} is not set: that peer is not in the table", file=sys.stderr)
    document = {
        "title": "Windows a second: our sampler against other loaders (random data, one thread)", "rows": rows,
        "note": f"{report.facts['rounds']} rounds of {bench_data.SECONDS:g} s each, in turns; load average at the end "
        f"{os.getloadavg()[0]:.1f}.",
        "seeds": "0", "date": date.today().isoformat(), "machine": f"{cpu_model()}, {os.cpu_count()} cores",
        "command": "python tests/peers/loaders.py",
    }  # fmt: skip
    asked.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
