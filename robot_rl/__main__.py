"""`python -m robot_rl` is `robot-rl`."""

from __future__ import annotations

from robot_rl.cli import main

raise SystemExit(main())
