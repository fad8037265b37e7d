"""Windows a second of robomimic's SequenceDataset on one of our exports. Runs in robomimic's own environment:

    $ROBOT_RL_PEER_ROBOMIMIC tests/peers/robomimic_speed.py demos.hdf5 --obs proprio state --horizon 16 --history 2

Prints one JSON object. An epoch is a whole pass of a torch DataLoader with shuffling, as robomimic's own training makes it;
`--seconds` ends it early, and then `epoch_s` is scaled up from the share that was read.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

from peer_timing import common_parser, measured


def main() -> None:
    """Measure and print."""
    parser = common_parser(__doc__, batch=256)
    parser.add_argument("hdf5")
    parser.add_argument("--obs", nargs="+", default=["proprio"], help="low-dimensional keys below obs/")
    parser.add_argument("--images", nargs="*", default=[], help="image keys below obs/")
    parser.add_argument("--cache", choices=("none", "low_dim", "all"), default="low_dim")
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
        report = measured(dataset, options, actions="actions", opened_s=time.perf_counter() - began)
    report |= {
        "peer": f"robomimic {robomimic.__version__} SequenceDataset", "file": options.hdf5, "obs": options.obs,
        "images": options.images, "cache": options.cache,
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
