"""What other responses to a prompt are worth: the SFT policy's, or a demonstration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ostinato import Context, Reward, Samples

Respond = Callable[[Samples, int], Samples]  # (prompts, how many were answered before) -> responses


def of_sft(ctx: Context, name: str, count: int) -> Respond:
    """``count`` responses of the SFT policy to each prompt, side by side."""

    def respond(prompts: Samples, known: int) -> Samples:
        return ctx.sample(ctx.sft.load(), prompts, f"{name} references {known}", count=count)

    return respond


class Referenced:
    """A plugin that compares responses with others; each prompt's are scored once an iteration.

    A prompt's come with the first batch that it is in. A resumed run meets prompts in other
    batches, and so must be told what it knew: that is the plugin's state.
    """

    def __init__(self) -> None:
        self._iteration = 0
        self._found: dict[str, Tensor] = {}  # by prompt, (M,) each, on the CPU

    def begin(self, iteration: int) -> None:
        """Forget the rewards of another iteration, which another R_k gave."""
        if iteration != self._iteration:
            self._iteration, self._found = iteration, {}

    def references(self, samples: Samples, reward: Reward, respond: Respond) -> Tensor:
        """(B, M): what ``reward`` says of the M responses to each sample's prompt."""
        asked: dict[str, int] = {}
        for row, prompt in enumerate(samples.prompts):
            if prompt not in self._found:
                asked.setdefault(prompt, row)
        device = samples.mask.device
        if asked:
            prompts = samples.rows(torch.tensor(list(asked.values()), device=device))
            worth = reward.score_samples(respond(prompts, len(self._found))).total.float().cpu()
            self._found |= zip(asked, worth.view(len(asked), -1), strict=True)
        return torch.stack([self._found[prompt] for prompt in samples.prompts]).to(device)

    def state_dict(self) -> dict[str, Any]:
        """The prompts, and their rewards (prompts, M)."""
        rewards = list(self._found.values())
        state: dict[str, Any] = {"iteration": self._iteration, "prompts": list(self._found)}
        return state | ({"rewards": torch.stack(rewards)} if rewards else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` answered."""
        self._iteration = state["iteration"]
        self._found = dict(zip(state["prompts"], state.get("rewards", ()), strict=True))
