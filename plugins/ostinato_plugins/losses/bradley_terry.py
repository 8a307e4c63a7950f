"""The Bradley-Terry preference loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from ostinato import PreferenceBatch, RMOutputs, hookimpl


class BradleyTerry:
    """The Bradley-Terry loss, with soft labels and margins where the data has them (Book 7.2)."""

    paper = "A Little Bit of RLHF, chapter 7; Secrets of RLHF II, equations 2, 5 and 6"
    consumes = ("margin",)

    @hookimpl
    def preference_loss(self, batch: PreferenceBatch, outputs: RMOutputs) -> Tensor:
        """-[p log s(z) + (1 - p) log s(-z)], z = r_chosen - r_rejected - margin; (V, C).

        p is the label, s the sigmoid; several heads add up.
        """
        chosen = outputs.logits[:, batch.pairs[:, 0]]  # (V, C, heads)
        rejected = outputs.logits[:, batch.pairs[:, 1]]
        z = chosen - rejected - batch.margin[:, None]
        p = batch.label[:, None]
        return -(p * logsigmoid(z) + (1 - p) * logsigmoid(-z)).sum(-1)
