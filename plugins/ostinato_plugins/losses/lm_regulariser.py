"""Keep the reward model's body a language model while it learns to score."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from ostinato import PreferenceBatch, RMOutputs, hookimpl


class LMRegulariser:
    """Add the chosen response's negative log-likelihood to the loss (Book, section 8.2)."""

    paper = "A Little Bit of RLHF, section 8.2; Pang et al. 2024 (the NLL term of DPO+NLL)"
    needs = {"lm_head": True}

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        gamma: float = Field(0.1, gt=0, description="weight of the NLL, nats per token (ours)")

    config: Config

    @hookimpl
    def rm_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> dict[str, Tensor]:
        """gamma * NLL of the chosen: mean over its tokens, then over comparisons and views."""
        assert outputs.lm_logits is not None
        chosen = batch.pairs[:, 0]
        mask = batch.response_mask[chosen, 1:]  # (C, T - 1): the tokens that are predicted
        row, place = mask.nonzero(as_tuple=True)  # (tokens,) each
        logits = outputs.lm_logits[:, chosen[row], place].float()  # (V, tokens, vocabulary)
        target = batch.input_ids[chosen[row], place + 1].expand(len(logits), -1)
        nll = cross_entropy(logits.transpose(1, 2), target, reduction="none")  # (V, tokens)
        each = nll / mask.sum(1)[row] / len(chosen)
        return {"nll": self.config.gamma * each.sum(1).mean()}
