"""Start from the policy of the iteration before."""

from __future__ import annotations

from ostinato import PolicyHandle, PolicyHistory, hookimpl


class TakeLastPolicy:
    """Start each iteration's policy from the one before it (Wolf 2.2, figure 3g)."""

    paper = "Wolf 2025, section 2.2"

    @hookimpl
    def init_policy(self, history: PolicyHistory) -> PolicyHandle:
        """pi_k_init = pi_{k-1}."""
        return history.final[-1] if history.final else history.sft
