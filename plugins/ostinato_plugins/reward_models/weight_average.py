"""Optimise on one reward model whose weights are the mean of all."""

from __future__ import annotations

from collections.abc import Sequence

from ostinato import Reward, RewardModel, UserError, average, hookimpl


class WeightAverage:
    """Average the parameters of all reward models so far, head included (Wolf 2.2, figure 3f)."""

    paper = "Wolf 2025, section 2.2; Rame et al. 2024 (WARM)"

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """phi_k = mean of phi~_1..phi~_k, in fp32; the core calibrates the new model on D_k.

        It makes sense only because every iteration starts from the same body and head. Raises
        UserError for models of different shapes, or whose outputs are read in different ways.
        """
        members = [member for model in reward_models for member in model.members]
        merged = members[-1].copy()
        if odd := next((m for m in members if _read(m) != _read(merged)), None):
            raise UserError(
                f"plugin 'weight_average': the outputs of one reward model are read by "
                f"{_read(odd)}, those of another by {_read(merged)}; their weights have no mean"
            )
        try:
            merged.model.load_state_dict(average([m.model.state_dict() for m in members]))
        except ValueError as error:
            raise UserError(
                f"plugin 'weight_average': the reward models have no mean: {error}"
            ) from error
        merged.plugin_modules.clear()  # what served their training plays no part in a score
        merged.lm_head = None
        return merged


def _read(model: RewardModel) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in sorted(model.settings.items()))
    return f"{model.reader}({settings})"
