"""How often the policy's response beats the SFT policy's, by gold."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ostinato import Context, hookimpl


class WinRate:
    """Measure wins, ties and losses against SFT responses, by gold (Secrets II, tables 2, 3)."""

    paper = "Secrets of RLHF II, section 3.2, tables 2 and 3"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        margin: float = Field(
            0.1, ge=0, description="golds that differ by no more tie; std of SFT gold (ours)"
        )

    config: Config

    @hookimpl
    def evaluate(self, ctx: Context) -> dict[str, float]:
        """Shares of the evaluation prompts, which sum to 1; nothing without a gold model."""
        found = ctx.evaluation
        assert found is not None
        if found.gold is None or found.sft_gold is None:
            return {}
        lead = found.gold - found.sft_gold  # (B,), the same prompts in the same order
        won, lost = lead > self.config.margin, lead < -self.config.margin
        shares = {"win": won, "tie": ~(won | lost), "lose": lost}
        return {name: float(share.double().mean()) for name, share in shares.items()}
