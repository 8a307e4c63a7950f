"""critique: rewrites of responses by principles join the comparisons (Book 13.2)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

import ostinato
from ostinato import Samples, UserError
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context
from ostinato.data.training import refine_data
from ostinato.models.loading import load_tokenizer, padded

ASK = {"critique": "C|{prompt}|{response}|{principle}", "revision": "R|{response}|{critique}"}
PRINCIPLES = ["be brief", "be kind"]


class Scripted(Context):
    """A context whose language model answers what ``says(question)`` does, finished or not."""

    def sample(self, policy, prompts, purpose, **_):
        said = [policy.says(text) for text in prompts.texts]
        policy.asked.extend(prompts.texts)
        tokenizer = policy.tokenizer
        eos = tokenizer.eos_token_id
        rows = [tokenizer(t, add_special_tokens=False)["input_ids"] + [eos] * f for t, f in said]
        pad = tokenizer.pad_token_id
        finished = torch.tensor([bool(f) for _, f in said])
        prompt = padded(prompts.tokens, pad, left=True)
        return Samples(tokenizer, *prompt, *padded(rows, pad), finished, prompts.texts)


def says(question):
    """Critiques name what they read; a revision turns the response round."""
    kind, *rest = question.split("|")
    if kind == "C":
        return f" poor {rest[1]} by {rest[2]} ", True
    return f" {rest[0][::-1]}{'!' if rest[1] else ''} ", "z" not in rest[0]


class Case:
    """The plugin with a scripted language model."""

    def __init__(self, kit, answers=says, **settings):
        self.kit = kit.make(("critique", {"principles": PRINCIPLES, **ASK, **settings}))
        tokenizer = load_tokenizer(self.kit.ctx.config.policy, "policy")
        lm = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=None))
        self.policy = SimpleNamespace(tokenizer=tokenizer, says=answers, asked=[], lm=lm)
        known = {n: getattr(self.kit.ctx, n) for n in ("config", "draws", "device", "iteration")}
        self.ctx = Scripted(sft=PolicyHandle("sft", lambda: self.policy), **known)

    def refined(self, data):
        return refine_data(data, self.kit.plugins, self.ctx)

    @property
    def plugin(self):
        return self.kit.plugins["critique"].instance


@pytest.mark.parametrize("of", ["rejected", "chosen"])
def test_each_rewrite_is_preferred_to_its_response(kit, comparisons, of):
    data = comparisons(6)
    made = Case(kit, of=of, label=0.9).refined(data)
    assert made.to_list()[:6] == data.to_list()
    for row, added in zip(data.to_list(), made.to_list()[6:], strict=True):
        text = row[of][::-1] + "!"
        assert added["chosen"] == text
        assert added["chosen_ids"] == [*(ord(c) + 3 for c in text), 1]  # ByT5's bytes, and its eos
        assert added["chosen_finished"] is True
        assert added["chosen_id"] == f"critique/{row[f'{of}_id']}"
        assert added["chosen_gold"] is None
        for part in ("", "_ids", "_finished", "_id", "_gold"):
            assert added[f"rejected{part}"] == row[f"{of}{part}"]
        assert (added["label"], added["margin"], added["weight"]) == (0.9, 0, 1)
        for same in ("group", "prompt_id", "iteration", "prompt", "prompt_ids"):
            assert added[same] == row[same]


def test_it_asks_for_a_critique_by_a_drawn_principle_and_for_a_revision_by_that(kit, comparisons):
    data, case = comparisons(20), Case(kit)
    case.refined(data)
    first, then = case.policy.asked[:20], case.policy.asked[20:]
    drawn = [question.split("|")[3] for question in first]
    assert set(drawn) == set(PRINCIPLES)
    rows = zip(data["prompt"], data["rejected"], drawn, strict=True)
    assert first == [f"C|{p}|{r}|{c}" for p, r, c in rows]
    answers = zip(data["rejected"], drawn, strict=True)
    assert then == [f"R|{r}|poor {r} by {c}" for r, c in answers]


def test_without_a_critique_only_the_revision_is_asked_for(kit, comparisons):
    data, case = comparisons(3), Case(kit, critique=None)
    made = case.refined(data)
    assert case.policy.asked == [f"R|{r}|" for r in data["rejected"]]
    assert made["chosen"][3:] == [r[::-1] for r in data["rejected"]]


def test_each_round_revises_the_one_before(kit, comparisons):
    data, case = comparisons(3), Case(kit, rounds=3)
    made = case.refined(data)
    assert made["chosen"][3:] == [f"!{r[::-1]}!!" for r in data["rejected"]]
    assert len(case.policy.asked) == 3 * 2 * 3


def test_what_is_no_rewrite_is_left_out(kit, comparisons):
    answers = iter([("", True), ("new", False), ("  same ", True), ("new", True)])
    data = comparisons(4).to_list()
    data[2]["rejected"] = "same"
    case = Case(kit, lambda _: next(answers), critique=None)
    made = case.refined(Dataset.from_list(data))
    assert made["chosen_id"][4:] == [f"critique/{data[3]['rejected_id']}"]
    assert case.ctx.logged == {"critique/added": 1.0}


def test_each_response_is_rewritten_once_in_a_run(kit, comparisons):
    """Also after a resume, which knows the plugin by its state alone."""
    data, more = comparisons(4), comparisons(7)  # the first four again, and others
    case, again = Case(kit), Case(kit)
    case.refined(data)
    again.plugin.load_state_dict(json.loads(json.dumps(case.plugin.state_dict())))
    for one in (case, again):
        one.policy.asked.clear()
        assert len(one.refined(more)) == 14
        assert len(one.policy.asked) == 2 * 3
    assert case.refined(more).to_list() == again.refined(more).to_list()


def test_a_share_of_the_responses_is_rewritten_and_stays_so(kit, comparisons):
    data, case = comparisons(200), Case(kit, share=0.25)
    found = len(case.refined(data)) - 200
    assert 30 < found < 70
    assert len(case.refined(data)) - 200 == found


def test_a_response_in_several_comparisons_is_rewritten_once(kit, comparisons):
    data = comparisons(2, responses=3)
    made = Case(kit).refined(data)
    assert len(made) - len(data) == len(set(data["rejected_id"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"principles": []}, "principles"),
        ({"revision": "{prompt}"}, "has no {response}"),
        ({"critique": "{response} {critique}"}, "asks for {critique}, expected some of"),
        ({"revision": "{response"}, "cannot be filled in"),
        ({"label": 0.5}, "label"),
    ],
)
def test_settings_that_say_nothing(kit, settings, said):
    with pytest.raises(UserError, match=said):
        kit.make(("critique", {"principles": PRINCIPLES, **settings}))


def test_in_a_run_the_sft_policy_rewrites(tmp_path):
    """The toy world's policy reviews the prompt once more; another model could do better."""
    plugin = {"principles": ["good"], "critique": None, "revision": "{response} {prompt}"}
    small = ["prompts.preference=8", "prompts.held_out=0", "prompts.evaluation=4"]
    small += ["reward_model.updates=2", "rl.rollouts=1", "rl.rollout_size=8", "rl.minibatch=8"]
    settings = {"world": "toy", "iterations": 2, "plugins": ["concat", {"critique": plugin}]}
    run = ostinato.run(settings, tmp_path / "run", small)
    added = [r["critique/added"] for r in run.metrics if "critique/added" in r]
    assert len(added) == 2
    assert added[1] > added[0] > 0
    data = Dataset.from_file(str(tmp_path / "run" / "iteration-2" / "data" / "data.arrow"))
    assert sum(name.startswith("critique/") for name in data["chosen_id"]) == added[1]
    names = set(data["chosen_id"]) | set(data["rejected_id"])
    texts = {(row[f"{s}_id"], row[s]) for row in data for s in ("chosen", "rejected")}
    assert len(texts) == len(names)
