"""Where episodes are played and gradients are computed: this process, Ray's workers, torchrun's ranks, Slurm's jobs.

`local` is the default and the reference. A robot's control loop never runs here: its env is refused.
"""
