"""Names of the exact rewrites that `robot-rl export passes=...` can make; a policy that has them offers `for_export`."""

from __future__ import annotations

from enum import Enum


class ExportPass(str, Enum):
    """film: the level's part of the conditioning is a table, the observation's part is computed once an observation.
    conv: convolutions along the chunk are matrix products.
    """

    film = "film"
    conv = "conv"
