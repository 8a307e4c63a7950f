"""At the SFT policy nothing is promised: the gap is 0 whatever the reward is made of."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

import ostinato_worlds.toy as toy
from ostinato import combine, load_config
from ostinato.config.draws import Draws
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context
from ostinato.contract.plugins import activate
from ostinato.data.prompts import load_prompts
from ostinato.engine.evaluation import Evaluator
from ostinato.machine.backend import Backend
from ostinato.models.generation import sample
from ostinato.models.policy import Policy
from ostinato.models.reward_model import RewardModel
from ostinato.models.ruler import Ruler, calibrated, centred

SEEDS = 10
METHODS = {
    "take_last_rm": {},
    "worst_case": {},
    "ensemble": {},
    "uwo": {"coefficient": 1.0},
    "weight_average": {},
}


@pytest.fixture(scope="module")
def world():
    """The toy world's models and prompts, and for each seed a ruler and a sample of its own."""
    config = load_config("toy", ["backend.threads=1"])
    backend = Backend(config.backend)
    sft = Policy.load(config.policy, 1.0)
    prompts = load_prompts(config.prompts, sft.tokenizer)
    gold, seeds = toy.gold(), []
    evaluation, rl = prompts.evaluation.first(96), prompts.rl.first(96)
    for seed in range(SEEDS):
        ctx = Context(
            config, Draws(seed, 1), backend.device, PolicyHandle("sft", lambda: sft), gold
        )
        parts = [
            sample(sft, part.tokens, config.generation, ctx.generator(name), part.texts)
            for name, part in (
                ("ruler evaluation", evaluation),
                ("ruler rl", rl),
                ("evaluation", evaluation),
            )
        ]
        ruler = Ruler(*parts[:2], *(ctx.gold_scores(part) for part in parts[:2]))
        seeds.append((ctx.at(ruler=ruler), ruler, parts[2]))
    body = RewardModel.load(config.reward_model)
    return SimpleNamespace(sft=sft, prompts=evaluation, body=body, seeds=seeds, config=config)


def trained(world, ruler, seed, iteration, members):
    """R~_k of so many members: heads apart, with an offset and a scale as training leaves them."""
    found = []
    for m in range(members):
        model = world.body.with_head(Draws(100 * seed + iteration), purpose=f"head {m}")
        model.model.score.weight.data *= 1 + iteration
        found.append(calibrated(model, ruler))
    return found[0] if members == 1 else combine(found, lambda scores: scores.mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_the_gap_at_the_sft_policy_is_0(world, name, members, monkeypatch):
    """Ten seeds, each with its own ruler and sample: within two standard errors."""
    found = []
    for seed, (ctx, ruler, fresh) in enumerate(world.seeds):
        plugins = activate([(name, METHODS[name])], "test")
        models = [trained(world, ruler, seed, k, members) for k in (1, 2)]
        reward = plugins.one("combine_rm", reward_models=models, datasets=[], ctx=ctx)
        if reward not in models:
            for member in reward.members:
                calibrated(member, ruler)
            centred(reward, ruler)
        data = Dataset.from_list(
            [
                {
                    "prompt": world.prompts.texts[i],
                    "prompt_ids": world.prompts.tokens[i],
                    **{f"{side}_ids": [5, 6, 7 + i] for side in ("chosen", "rejected")},
                    **{f"{side}_finished": False for side in ("chosen", "rejected")},
                    **{f"{side}_gold": float(i) for side in ("chosen", "rejected")},
                }
                for i in range(4)
            ]
        )
        evaluator = Evaluator(
            world.prompts,
            world.sft,
            reward,
            models[-1],
            data,
            plugins,
            ctx,
        )
        # drawn once a seed: sampling is most of the time
        monkeypatch.setattr(Context, "sample", lambda *_, samples=fresh, **__: samples)
        scores = [reward.score_samples(s).score for s in (ruler.evaluation, ruler.rl)]
        assert abs(float(torch.cat(scores).mean())) < 1e-4
        found.append(evaluator(world.sft, 0))
    for key in ("gap", "gap_latest"):
        values = np.array([row[key] for row in found])
        assert abs(values.mean()) < 2 * values.std(ddof=1) / SEEDS**0.5, (key, values)
    errors = [row["gap_se"] for row in found]
    gaps = [row["gap"] for row in found]
    assert np.mean(errors) == pytest.approx(np.std(gaps, ddof=1), rel=0.6)  # it tells the spread
