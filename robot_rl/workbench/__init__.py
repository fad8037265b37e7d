"""Tools around the stages: they read runs and machines, and leave no run directory of their own."""
