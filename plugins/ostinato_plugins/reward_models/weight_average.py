"""Optimise on one reward model whose weights are the mean of all."""

from __future__ import annotations

from collections.abc import Sequence

from ostinato import Reward, RewardModel, UserError, average, combine, hookimpl


class WeightAverage:
    """Average the parameters of all reward models so far, head included (Wolf 2.2, figure 3f)."""

    paper = "Wolf 2025, section 2.2; Rame et al. 2024 (WARM)"

    @hookimpl
    def combine_rm(self, reward_models: Sequence[Reward]) -> Reward:
        """phi_k = mean of phi~_1..phi~_k, in fp32; the core calibrates the new model on D_k.

        It makes sense only because every iteration starts from the same body and head, so several
        members, whose heads start apart, are averaged each over its iterations and score as their
        mean. Raises UserError where models differ in shape or in how their outputs are read.
        """
        places = zip(*(model.members for model in reward_models), strict=True)
        merged = [_merged(models) for models in places]
        return merged[0] if len(merged) == 1 else combine(merged, lambda scores: scores.mean(1))


def _merged(models: Sequence[RewardModel]) -> RewardModel:
    merged = models[-1].copy()
    if odd := next((m for m in models if _read(m) != _read(merged)), None):
        raise UserError(
            "plugin 'weight_average': the outputs of one reward model are read by "
            f"{_read(odd)}, those of another by {_read(merged)}; their weights have no mean"
        )
    for name in set(merged.plugin_modules) - {merged.reader}:
        del merged.plugin_modules[name]  # what served their training plays no part in a score
    merged.lm_head = None
    try:
        merged.model.load_state_dict(average([m.model.state_dict() for m in models]))
        for name, module in merged.plugin_modules.items():  # the score is read through it
            module.load_state_dict(average([m.plugin_modules[name].state_dict() for m in models]))
    except ValueError as error:
        raise UserError(
            f"plugin 'weight_average': the reward models have no mean: {error}"
        ) from error
    return merged


def _read(model: RewardModel) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in sorted(model.settings.items()))
    return f"{model.reader}({settings})"
