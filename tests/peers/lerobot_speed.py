"""Windows a second of LeRobot's LeRobotDataset on one of our exports. Runs in LeRobot's own environment:

    $ROBOT_RL_PEER_LEROBOT tests/peers/lerobot_speed.py DATASET_FOLDER --horizon 16 --history 2 --workers 0

Prints one JSON object. An epoch is a whole pass of a torch DataLoader with shuffling; `--seconds` ends it early, and then
`epoch_s` is scaled up from the share that was read. Cameras that are left out are taken out of the metadata in memory.
`frames_per_s` counts every decoded picture of every camera; `windows_per_s` counts samples.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--history", type=int, default=1, help="observations of a window")
    parser.add_argument("--horizon", type=int, default=16, help="actions of a window")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--backend", default="pyav", help="torchcodec or pyav")
    parser.add_argument("--no-images", action="store_true", help="leave the cameras out")
    parser.add_argument("--seconds", type=float, default=30.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    # datasets and torchvision print while they import and load; standard output is for the JSON.
    with contextlib.redirect_stdout(sys.stderr):
        import torch
        from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

        torch.manual_seed(options.seed)
        torch.set_num_threads(1)
        meta = LeRobotDatasetMetadata("local/speed", root=options.folder)
        cameras = [] if options.no_images else list(meta.camera_keys)
        rate = meta.fps
        past = [-step / rate for step in reversed(range(options.history))]
        ahead = [(step - options.history + 1) / rate for step in range(options.horizon)]
        wanted = dict.fromkeys(("observation.state", *cameras), past) | {"action": ahead}
        began = time.perf_counter()
        dataset = LeRobotDataset(
            "local/speed", root=options.folder, delta_timestamps=wanted, video_backend=options.backend
        )
        if options.no_images:
            dataset.meta.info["features"] = {
                key: value for key, value in dataset.meta.features.items() if key not in meta.camera_keys
            }
            dropped = [key for key in meta.image_keys if key in dataset.hf_dataset.column_names]
            if dropped:
                dataset.hf_dataset = dataset.hf_dataset.remove_columns(dropped)
        opened = time.perf_counter() - began
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=options.batch, shuffle=True, num_workers=options.workers, drop_last=False
        )
        began, windows = time.perf_counter(), 0
        for batch in loader:
            windows += len(batch["action"])
            if time.perf_counter() - began > options.seconds:
                break
        spent = time.perf_counter() - began
    report = {
        "peer": f"lerobot {importlib.metadata.version('lerobot')} LeRobotDataset",
        "folder": options.folder,
        "windows": len(dataset),
        "windows_read": windows,
        "windows_per_s": windows / spent,
        "frames_per_s": windows * options.history * len(cameras) / spent,
        "epoch_s": spent * len(dataset) / windows,
        "open_s": opened,
        "cameras": cameras,
        "camera_kind": sorted({meta.features[key]["dtype"] for key in cameras}),
        "backend": options.backend,
        "history": options.history,
        "horizon": options.horizon,
        "batch": options.batch,
        "workers": options.workers,
        "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
