"""Windows a second of robomimic's SequenceDataset on one of our exports. Runs in robomimic's own environment:

    $ROBOT_RL_PEER_ROBOMIMIC tests/peers/robomimic_speed.py demos.hdf5 --obs proprio state --horizon 16 --history 2

Prints one JSON object. An epoch is a whole pass of a torch DataLoader with shuffling, as robomimic's own training makes it;
`--seconds` ends it early, and then `epoch_s` is scaled up from the share that was read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import sys
import time


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hdf5")
    parser.add_argument("--obs", nargs="+", default=["proprio"], help="low-dimensional keys below obs/")
    parser.add_argument("--images", nargs="*", default=[], help="image keys below obs/")
    parser.add_argument("--history", type=int, default=1, help="frame_stack")
    parser.add_argument("--horizon", type=int, default=16, help="seq_length")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--cache", choices=("none", "low_dim", "all"), default="low_dim")
    parser.add_argument("--seconds", type=float, default=30.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    # robomimic prints while it imports and loads; standard output is for the JSON.
    with contextlib.redirect_stdout(sys.stderr):
        import robomimic
        import robomimic.utils.obs_utils as obs_utils
        import torch
        from robomimic.utils.dataset import SequenceDataset

        torch.manual_seed(options.seed)
        torch.set_num_threads(1)
        modalities = {"low_dim": options.obs, "rgb": options.images}
        obs_utils.initialize_obs_utils_with_obs_specs({"obs": modalities})
        began = time.perf_counter()
        dataset = SequenceDataset(
            options.hdf5,
            obs_keys=(*options.obs, *options.images),
            dataset_keys=("actions",),
            frame_stack=options.history,
            seq_length=options.horizon,
            hdf5_cache_mode=None if options.cache == "none" else options.cache,
            hdf5_use_swmr=True,
            load_next_obs=False,
        )
        opened = time.perf_counter() - began
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=options.batch, shuffle=True, num_workers=options.workers, drop_last=False
        )
        began, windows = time.perf_counter(), 0
        for batch in loader:
            windows += len(batch["actions"])
            if time.perf_counter() - began > options.seconds:
                break
        spent = time.perf_counter() - began
    report = {
        "peer": f"robomimic {robomimic.__version__} SequenceDataset",
        "file": options.hdf5,
        "windows": len(dataset),
        "windows_read": windows,
        "windows_per_s": windows / spent,
        "epoch_s": spent * len(dataset) / windows,
        "open_s": opened,
        "obs": options.obs,
        "images": options.images,
        "history": options.history,
        "horizon": options.horizon,
        "batch": options.batch,
        "workers": options.workers,
        "cache": options.cache,
        "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
