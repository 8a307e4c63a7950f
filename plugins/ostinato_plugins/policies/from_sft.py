"""Start every iteration from the SFT policy."""

from __future__ import annotations

from ostinato import PolicyHandle, PolicyHistory, hookimpl


class FromSFT:
    """Start every iteration's policy from the SFT policy again (Wolf 2.2, figure 3i)."""

    paper = "Wolf 2025, section 2.2"

    @hookimpl
    def init_policy(self, history: PolicyHistory) -> PolicyHandle:
        """pi_k_init = pi_sft."""
        return history.sft
