"""Windows a second of LeRobot's LeRobotDataset on one of our exports. Runs in LeRobot's own environment:

    $ROBOT_RL_PEER_LEROBOT tests/peers/lerobot_speed.py DATASET_FOLDER --horizon 16 --history 2 --workers 0

Prints one JSON object. An epoch is a whole pass of a torch DataLoader with shuffling; `--seconds` ends it early, and then
`epoch_s` is scaled up from the share that was read. Cameras that are left out are taken out of the metadata in memory.
`frames_per_s` counts every decoded picture of every camera; `windows_per_s` counts samples.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import time

from peer_timing import common_parser, measured


def main() -> None:
    """Measure and print."""
    parser = common_parser(__doc__, batch=64)
    parser.add_argument("folder")
    parser.add_argument("--backend", default="pyav", help="torchcodec or pyav")
    parser.add_argument("--no-images", action="store_true", help="leave the cameras out")
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
        report = measured(dataset, options, actions="action", opened_s=time.perf_counter() - began)
    report |= {
        "peer": f"lerobot {importlib.metadata.version('lerobot')} LeRobotDataset",
        "folder": options.folder,
        "frames_per_s": report["windows_per_s"] * options.history * len(cameras),
        "cameras": cameras,
        "camera_kind": sorted({meta.features[key]["dtype"] for key in cameras}),
        "backend": options.backend,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
