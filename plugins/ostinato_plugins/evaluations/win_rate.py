"""How often the policy's response beats another policy's, by gold and by a judge."""

from __future__ import annotations

from collections.abc import Iterator
from os.path import expanduser, isdir
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ostinato import Context, Policy, Samples, UserError, hookimpl
from ostinato.models.generation import check_length
from ostinato.models.loading import vocabulary_key
from ostinato.report.results import read_run
from ostinato_plugins.judge import Judge, JudgeSettings, inconsistent, preference


class WinRate:
    """Measure wins, ties and losses by gold and a judge (Secrets II, tables 2, 3)."""

    paper = "Secrets of RLHF II, section 3.2, tables 2 and 3; Zheng et al. 2023 (judges)"

    class Config(BaseModel):
        """Settings."""

        model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
        margin: float = Field(
            0.1, ge=0, description="golds that differ by no more tie; std of SFT gold (ours)"
        )
        against: str | None = Field(
            None,
            description="an opponent beside the SFT policy: the folder of a finished run, whose "
            "last policy it is, or of a policy's checkpoint",
        )
        judge_margin: float = Field(
            0.0, ge=0, description="a judge's averaged log-odds, in nats, that still tie (ours)"
        )
        judge: JudgeSettings | None = Field(
            None, description="a language model that judges too; {} is the run's own SFT policy"
        )

        @field_validator("against")
        @classmethod
        def _there(cls, value: str | None) -> str | None:
            return None if value is None else str(checkpoint(Path(expanduser(value))))

    config: Config

    @hookimpl
    def evaluate(self, ctx: Context) -> dict[str, float]:
        """``win``, ``tie`` and ``lose``: shares of the evaluation prompts, which sum to 1.

        By gold, where there is one, against the SFT policy; ``against_...`` the other opponent,
        ``judge_...`` by the judge, whose ``inconsistent`` is the share that the order decides.
        """
        found, settings = ctx.evaluation, self.config
        made: dict[str, float] = {}
        judge = None
        if settings.judge is not None:
            judge = Judge.load(settings.judge, ctx, "plugins.win_rate.judge")
        for prefix, theirs in self._opponents(ctx):
            gold = found.sft_gold if theirs is found.sft_samples else found.gold_of(theirs)
            if found.gold is not None and gold is not None:
                made |= shares(found.gold - gold, settings.margin, prefix)
            if judge is not None:
                odds = judge.both_orders(
                    found.samples.prompts,
                    found.samples.responses,
                    theirs.responses,
                    ctx.generator(f"win_rate {prefix}principles"),
                )
                made |= shares(preference(odds), settings.judge_margin, f"{prefix}judge_")
                made[f"{prefix}judge_inconsistent"] = inconsistent(odds)
        return made

    def _opponents(self, ctx: Context) -> Iterator[tuple[str, Samples]]:
        """(prefix of its metrics, its responses to the evaluation prompts) of each."""
        found = ctx.evaluation
        yield "", found.sft_samples
        if self.config.against is None:
            return
        folder, settings = Path(self.config.against), ctx.config.generation
        other = Policy.load_checkpoint(folder, settings.temperature).to(ctx.device)
        if vocabulary_key(other.tokenizer) != vocabulary_key(found.policy.tokenizer):
            raise UserError(
                f"plugins.win_rate.against: the policy in '{folder}' has another tokenizer than "
                "the run's"
            )
        longest = found.samples.prompt_ids.shape[1]
        check_length(other.lm, longest, settings, "opponent")
        yield "against_", found.draw("win_rate opponent", other)


def shares(lead: Tensor, margin: float, prefix: str) -> dict[str, float]:
    """Of leads (B,): those above the margin, within it, and below."""
    won, lost = lead > margin, lead < -margin
    counted = {"win": won, "tie": ~(won | lost), "lose": lost}
    return {f"{prefix}{name}": float(share.double().mean()) for name, share in counted.items()}


def checkpoint(folder: Path) -> Path:
    """The last policy of a finished run's folder, or the folder itself where it holds a policy.

    Raises ValueError.
    """
    if not isdir(folder):  # which is false, not an error, of a name that is too long
        raise ValueError(f"no folder '{folder}'")
    if (folder / "run.yaml").is_file():
        try:
            run = read_run(folder)
        except UserError as error:
            raise ValueError(str(error)) from None
        wanted = run.config["iterations"]
        if len(run.iterations) < wanted:
            raise ValueError(
                f"the run in '{folder}' is not finished: it has {len(run.iterations)} of "
                f"{wanted} iterations"
            )
        folder = folder / f"iteration-{wanted}" / "policy"
    if not (folder / "config.json").is_file():
        raise ValueError(f"'{folder}' holds neither a finished run nor a policy's checkpoint")
    return folder
