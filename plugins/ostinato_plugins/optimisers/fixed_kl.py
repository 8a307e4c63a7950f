"""A constant KL coefficient."""

from __future__ import annotations

from ostinato import Context, hookimpl


class FixedKL:
    """Keep the KL coefficient of the run file throughout (Wolf, appendix C)."""

    paper = "Wolf 2025, appendix C"

    @hookimpl
    def kl_coefficient(self, ctx: Context) -> float:
        """``kl.coefficient``."""
        return ctx.config.kl.coefficient
