"""KL between two policies on sampled responses: exact, or the estimates that a run can train on."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.measures import exact_kl, kl_k1, kl_k2, kl_k3
from ostinato.models.policy import Policy, spread
from ostinato.models.samples import Samples

FORWARD_ROWS = 64  # responses in one forward pass
LOGITS = 2**24  # logits of each policy in memory at once
ESTIMATES = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}  # from the sampled tokens alone


@torch.no_grad()
def kl_per_token(policy: Policy, other: Policy, samples: Samples) -> Tensor:
    """KL(policy || other) (B, T) over the full vocabulary at each real token, in nats.

    Both policies are divided by their temperature; 0 on padding.
    """
    kl = torch.zeros(samples.mask.shape, device=samples.mask.device)
    for rows in torch.arange(len(samples), device=kl.device).split(FORWARD_ROWS):
        part = samples.rows(rows)
        hidden, other_hidden = policy.hidden(part), other.hidden(part)
        tokens = max(1, LOGITS // policy.lm.get_output_embeddings().weight.shape[0])
        chunks = zip(hidden.split(tokens), other_hidden.split(tokens), strict=True)
        found = [exact_kl(policy.logits(a)[None], other.logits(b)[None])[0] for a, b in chunks]
        kl[rows, : part.mask.shape[1]] = spread(torch.cat(found), part.mask)
    return kl


def kl_per_response(policy: Policy, other: Policy, samples: Samples) -> Tensor:
    """KL(policy || other) (B,) over the full vocabulary, summed over response tokens, in nats."""
    return kl_per_token(policy, other, samples).sum(1).cpu()
