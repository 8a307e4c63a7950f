"""The reward R_k of an iteration: combined, then wrapped, each with its zero on the ruler."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from ostinato.config.errors import blamed
from ostinato.contract.answers import wrong
from ostinato.data.preferences import Preferences
from ostinato.engine.calibration import calibrate, scores_of
from ostinato.engine.session import Session
from ostinato.models.reward import Calibration, Reward
from ostinato.models.reward_model import RewardModel
from ostinato.models.ruler import centred

ROUNDING = 1e-6  # the share of a reward that fp32 does not tell from none


@dataclass
class Combination:
    """The stage ``combined``: R_k of what the run has; without reward models that is nothing.

    A reward holds functions, which no folder keeps: a resumed run asks the plugins again, and takes
    the zeros, and weights that combine_rm made, from the folder.
    """

    s: Session
    models: Sequence[Reward]  # R~_1 .. R~_k
    preferences: Sequence[Preferences]  # D~_1 .. D~_k
    data: Dataset | None  # D_k
    base: Reward = field(init=False)  # what combine_rm answered

    def make(self) -> Reward:
        """R_k, with mean 0 on the ruler before and after it is wrapped."""
        self.base = self._combined(None)
        reward = self._wrapped(None)
        self.s.log_actions("combined")
        return reward

    def save(self, reward: Reward, folder: Path) -> None:
        """Which reward models R_k consists of, and the weights of one that combine_rm made."""
        names = {}
        for k, model in enumerate(self.models, start=1):
            for i, member in enumerate(model.members):
                last = f"/member-{i}" if len(model.members) > 1 else ""
                names[id(member)] = f"iteration-{k}/reward_model{last}"
        facts = {
            "plugin": self.s.plugins.owners["combine_rm"],
            "wrapped_by": self.s.plugins.implementing("wrap_reward"),
            "members": [names.get(id(member)) for member in reward.members],
            "zeros": [self.base.zero, reward.zero],
        }
        (folder / "combined.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        if type(self.base) is RewardModel and id(self.base) not in names:
            self.base.save(folder)

    def load(self, folder: Path) -> Reward:
        """R_k again, of the same reward models."""
        facts = json.loads((folder / "combined.json").read_text(encoding="utf-8"))
        before, after = facts["zeros"]
        if (folder / "config.json").exists():
            self.base = RewardModel.load_checkpoint(folder, self.s.plugins.readers)
            self._take("combine_rm", self.s.plugins.owners["combine_rm"], self.base)
        else:
            self.base = self._combined(before)
        reward = self._wrapped(after)
        self.s.plugins.taken_actions()  # they are in the log already
        self.s.ctx.logged.clear()
        return reward

    def _combined(self, zero: float | None) -> Reward:
        """The answer of combine_rm; a model that was made for it is calibrated."""
        s, owner = self.s, self.s.plugins.owners["combine_rm"]
        datasets = [p.train for p in self.preferences]
        answer: Reward = s.plugins.one(
            "combine_rm", reward_models=list(self.models), datasets=datasets, ctx=s.ctx
        )
        self._take("combine_rm", owner, answer)
        held_out = self.preferences[-1].held_out if self.preferences else None
        for member in answer.members:
            if member.calibration == Calibration():
                calibrate(s, member, self.data, held_out)
        self._centre(answer, zero)
        newest = self.models[-1] if self.models else None
        s.plugins.acted(owner, "combine_rm", self._change(newest, answer))
        return answer

    def _wrapped(self, zero: float | None) -> Reward:
        """What the chain of wrap_reward makes of it."""
        hook = "wrap_reward"

        def check(name: str, before: Reward, after: Reward) -> float:
            self._take(hook, name, after)
            return self._change(before, after)

        ctx = self.s.ctx.at(data=self.data)
        reward: Reward = self.s.plugins.chain(hook, "reward", self.base, check, ctx=ctx)
        if reward is not self.base:
            self._centre(reward, zero)
        return reward

    def _take(self, hook: str, name: str, answer: Reward) -> None:
        """Check an answer, lay it to its plugin, and move it to the run's device."""
        if not isinstance(answer, Reward):
            fault = f"answered a {type(answer).__name__}, expected an ostinato.Reward"
            raise wrong(name, hook, fault)
        with blamed(name, "its reward"):
            if not answer.owner and not self._is_old(answer):
                answer.owner = name
            kinds = {type(m).__name__ for m in answer.members if not isinstance(m, RewardModel)}
            if not kinds:
                answer.to(self.s.backend.device)
        if kinds:
            fault = f"answered a Reward whose member is a {min(kinds)}, expected a RewardModel"
            raise wrong(name, hook, fault)

    def _centre(self, reward: Reward, zero: float | None) -> None:
        """Mean 0 on the ruler, or the ``zero`` that it had; a calibrated model has one already."""
        if isinstance(reward, RewardModel) or self._is_old(reward):
            return
        if zero is None:
            centred(reward, self.s.ruler)
        else:
            reward.zero = zero

    def _is_old(self, reward: Reward) -> bool:
        return any(reward is model for model in self.models)

    def _change(self, before: Reward | None, after: Reward) -> float:
        """Mean absolute change of what SFT responses to the evaluation prompts are worth."""
        if before is after:
            return 0.0
        samples = self.s.ruler.evaluation
        worth = scores_of(after, samples)
        moved = (worth if before is None else worth - scores_of(before, samples)).abs().mean()
        return float(moved) if moved > ROUNDING * worth.abs().mean() else 0.0
