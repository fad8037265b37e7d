"""robot-rl: from human demonstrations to a manipulation policy on a robot."""

__version__ = "0.1.0"
