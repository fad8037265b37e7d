"""What a policy around another one takes from it unchanged."""

from __future__ import annotations

from typing import Any

from robot_rl.specs import EnvSpec


class WrappedPolicy:
    """A Policy around another one; a subclass gives `act`, `reset`, `noise_shape` and `sampling`.

    Args:
        policy: the one inside.
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    @property
    def config(self) -> Any:
        """Of the policy inside."""
        return self.policy.config

    @property
    def spec(self) -> EnvSpec:
        """Of the policy inside."""
        spec: EnvSpec = self.policy.spec
        return spec

    @property
    def device(self) -> Any:
        """torch.device of the policy inside."""
        return self.policy.device
