"""One pair a prompt for a label: the favourites of reward models drawn from the ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato import Context, Reward, RunConfig, hookimpl
from ostinato_selection.votes import of_pairs, one_vote, several

Second = Literal["best", "worst", "uncertain"]


class ThompsonDuels:
    """Have the favourites of two members of the reward fight for a label, one duel a prompt."""

    paper = (
        "Liu et al. 2024, Sample-Efficient Alignment (arXiv 2411.01493), algorithm 1; "
        "Melikidze et al. 2026, ActiveUltraFeedback (arXiv 2603.09692), DRTS"
    )

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid")
        second: Second = Field(
            "best",
            description="against the first member's best: another's best (SEA), another's worst "
            "(DRTS), or where the difference of votes varies most (SEA, to identify the best)",
        )

    config: Config

    def check_run(self, config: RunConfig, plugins: Mapping[str, Any]) -> Iterator[str]:
        """Somebody to choose, and something to choose from."""
        yield from one_vote("thompson_duels", config, plugins)
        if config.preferences.responses < 3:
            yield (
                "preferences.responses: is 2; plugin 'thompson_duels' chooses one pair of several "
                "responses to a prompt, expected 3 or more"
            )

    @hookimpl
    def select_comparisons(
        self, comparisons: Dataset, reward_models: Sequence[Reward], ctx: Context
    ) -> Dataset:
        """y = argmax r_e(x, .), y' = argmax r_f(x, .), e and f drawn from the members and heads.

        Where f agrees on y the next member is asked, in an order drawn for the prompt; where all
        do, y' is drawn from the other responses. In the first iteration, which has no reward
        model, the pair is. Raises UserError where R~_{k-1} has one member.
        """
        generator = ctx.generator("thompson_duels")
        groups: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(zip(comparisons["iteration"], comparisons["group"], strict=True)):
            groups.setdefault(key, []).append(row)
        if not reward_models:
            picked = [rows[_drawn(len(rows), generator)] for rows in groups.values()]
            return comparisons.select(sorted(picked))
        sides = of_pairs(reward_models[-1], comparisons, ctx)
        several(sides[0], "thompson_duels")
        names = [comparisons[f"{side}_id"][:] for side in ("first", "second")]
        picked, clashes = [], 0
        for rows in groups.values():
            votes = {names[s][row]: sides[s][row] for row in rows for s in (0, 1)}  # (E,) each
            pairs = {frozenset((names[0][row], names[1][row])): row for row in rows}
            row, clash = duel(votes, pairs, self.config.second, generator)
            picked.append(row)
            clashes += clash
        ctx.log(**{"thompson_duels/agreed": clashes / len(groups)})
        return comparisons.select(sorted(picked))


def duel(
    votes: Mapping[str, Tensor],
    pairs: Mapping[frozenset[str], int],
    second: Second,
    generator: torch.Generator,
) -> tuple[int, bool]:
    """The row of the pair that fights, and whether y' was drawn since all members agree.

    ``votes`` (E,) by response, ``pairs`` the row of each two that may be compared.
    """
    order = torch.randperm(len(next(iter(votes.values()))), generator=generator).tolist()
    first = max(votes, key=lambda name: votes[name][order[0]].item())
    others = [name for name in votes if frozenset((name, first)) in pairs]
    if second == "uncertain":
        other = max(others, key=lambda name: (votes[first] - votes[name]).var().item())
        return pairs[frozenset((first, other))], False
    sign = 1 if second == "best" else -1
    for member in order[1:]:
        other = max(votes, key=lambda name: sign * votes[name][member].item())
        if other in others:
            return pairs[frozenset((first, other))], False
    return pairs[frozenset((first, others[_drawn(len(others), generator)]))], True


def _drawn(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
