"""take_first_data: D_k is the first set; with metarm, the rounds of Secrets of RLHF II, 3.2."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import ostinato
from ostinato.config.draws import Draws
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context
from ostinato.data.preferences import collect_meta
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet

SMALL = ["iterations=2", "reward_model.updates=3", "rl.rollouts=2", "rl.rollout_size=8"]
SMALL += ["rl.minibatch=8", "prompts.preference=8", "prompts.held_out=4", "prompts.evaluation=4"]
SMALL += ["backend.threads=1"]


def test_only_the_first_pairs_are_left(kit, comparisons):
    one = kit.make("take_first_data")
    sets = [comparisons(3, seed=k) for k in range(3)]
    made = one.plugins.one("combine_data", datasets=sets, ctx=one.ctx)
    assert made.to_dict() == sets[0].to_dict()


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Two rounds of MetaRM on the first pairs, as docs/plugins/metarm.md writes them."""
    out = tmp_path_factory.mktemp("rounds") / "run"
    wanted = "plugins=[take_first_data, {metarm: {responses: 3, eta: 0.1}}, take_last_policy]"
    return ostinato.run("toy", out, [*SMALL, wanted])


def arrow(run, name):
    return Dataset.from_file(str(run.directory / f"{name}.arrow"))


def test_round_two_trains_on_the_first_pairs(rounds):
    first = arrow(rounds, "iteration-1/preferences/train")
    for k in (1, 2):
        assert arrow(rounds, f"iteration-{k}/data/data").to_dict() == first.to_dict()
    newest = arrow(rounds, "iteration-2/preferences/train")
    assert newest["chosen"][:] != first["chosen"][:]  # drawn, of pi_1, and left aside


def test_only_the_meta_responses_are_the_newest_policys(rounds):
    """Drawn again from each policy: those of round two are pi_1's, not the SFT policy's."""
    config = ostinato.load_config("toy", SMALL)
    policies = [
        Policy.load_checkpoint(rounds.directory / name, config.generation.temperature)
        for name in ("sft", "iteration-1/policy")
    ]
    for k in (1, 2):
        kept = arrow(rounds, f"iteration-{k}/preferences/meta")
        prompts = PromptSet(list(range(len(kept))), kept["prompt"][:], kept["prompt_ids"][:])
        handle = PolicyHandle("sft", lambda: policies[0])
        ctx = Context(config, Draws(config.seed, k), torch.device("cpu"), handle, iteration=k)
        same = [
            collect_meta(policy, prompts, 3, ctx)["response_ids"][:] == kept["response_ids"][:]
            for policy in policies
        ]
        assert same == [k == 1, k == 2]


def weights(run, k):
    return load_file(run.directory / f"iteration-{k}/reward_model/model.safetensors")


def test_effect_meta_responses_alone_make_the_second_reward_model_another(rounds, tmp_path):
    """Without them the same pairs in the same order from the same start give R~_1 again."""
    plain = ostinato.run("toy", tmp_path / "run", [*SMALL, "plugins=[take_first_data]"])
    for run, alike in ((plain, True), (rounds, False)):
        first, second = weights(run, 1), weights(run, 2)
        assert all(torch.equal(first[name], second[name]) for name in first) == alike
