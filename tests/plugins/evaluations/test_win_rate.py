"""win_rate: wins, ties and losses by gold and a judge (Secrets of RLHF II, tables 2 and 3)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

import ostinato
from judge_kit import SHORT, TellsTexts, by_definition, prefers_quality
from ostinato import UserError, load_config
from ostinato.config.draws import Draws
from ostinato.contract.batches import PolicyHandle
from ostinato.data.prompts import load_prompts
from ostinato.engine.session import check
from ostinato.models.generation import sample as draw_from
from ostinato.models.loading import prompt_texts
from ostinato.models.policy import Policy
from ostinato_worlds.toy import POLICY, ToyGold


def sample(gold):
    return {"proxy": [0.0] * len(gold), "latest": [0.0] * len(gold), "gold": list(gold)}


def test_by_hand(evaluated):
    mine, sft = sample([1.0, 0.5, -0.25, -2.0, 0.0]), sample([0.0, 0.0, 0.0, 0.0, 0.0])
    made, asked = evaluated("win_rate", {"margin": 0.25}, [mine], [sft])
    assert made == {"win": 2 / 5, "tie": 2 / 5, "lose": 1 / 5}  # the margin itself still ties
    made, _ = evaluated("win_rate", {"margin": 0.0}, [mine], [sft])
    assert made == {"win": 2 / 5, "tie": 1 / 5, "lose": 2 / 5}
    assert asked == []


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0, 5.0])
def test_shares_sum_to_one_and_swap_with_the_sides(evaluated, margin):
    a, b = np.random.default_rng(3).normal(size=(2, 97))
    made, _ = evaluated("win_rate", {"margin": margin}, [sample(a)], [sample(b)])
    assert sum(made.values()) == pytest.approx(1, abs=1e-12)
    back, _ = evaluated("win_rate", {"margin": margin}, [sample(b)], [sample(a)])
    assert (back["win"], back["tie"], back["lose"]) == (made["lose"], made["tie"], made["win"])


def test_effect_a_better_policy_wins(evaluated):
    draw = np.random.default_rng(0)
    sft = sample(draw.normal(size=400))
    same, _ = evaluated("win_rate", {}, [sample(draw.normal(size=400))], [sft])
    better, _ = evaluated("win_rate", {}, [sample(draw.normal(size=400) + 1)], [sft])
    assert abs(same["win"] - same["lose"]) < 0.15
    assert better["win"] > 0.65 > 0.3 > better["lose"]  # P(N(1, 2) > .1) = .74


def test_nothing_without_gold(evaluated):
    assert evaluated("win_rate", {}, [sample([1.0])], gold=False) == ({}, [])


def test_a_margin_is_not_negative(kit):
    with pytest.raises(UserError, match=r"plugins\.win_rate\.margin"):
        kit.make(("win_rate", {"margin": -0.1}))


# By a judge


class Texts(dict):
    """A sample whose responses are these, to prompts x, xx, ...; gold is unknown."""

    def __init__(self, *responses):
        super().__init__(dict.fromkeys(("proxy", "latest", "gold"), [0.0] * len(responses)))
        self.responses, self.prompts = list(responses), ["x" * i for i, _ in enumerate(responses)]


def judged(evaluated, mine, theirs, lm=None, **settings):
    """The shares by a judge, which is the SFT policy."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    lm = lm or TellsTexts(prefers_quality(0.1, 3.0), tokenizer)
    sft = PolicyHandle("sft", lambda: SimpleNamespace(lm=lm, tokenizer=tokenizer))
    settings = {"judge": {**SHORT, "answers": ["A", "B"]}, **settings}
    drawn = [Texts(*mine)], [Texts(*theirs)]
    return evaluated("win_rate", settings, *drawn, gold=False, at={"sft": sft})


MINE = ("aaa", "a", "", "b", "aa")
THEIRS = ("a", "aa", "", "aab", "b")  # differences in a's minus b's: 2, -1, 0, -2, 3


def test_by_a_judge_by_hand_though_it_likes_the_first_place(evaluated):
    """A liking of 3 nats for the place decides every answer, and none of the shares."""
    made, _ = judged(evaluated, MINE, THEIRS)
    assert made == {
        "judge_win": 2 / 5,
        "judge_tie": 1 / 5,
        "judge_lose": 2 / 5,
        "judge_inconsistent": 1.0,
    }
    tokenizer = ByT5Tokenizer(extra_ids=0)
    fair = TellsTexts(prefers_quality(0.1, 0.0), tokenizer)
    same, _ = judged(evaluated, MINE, THEIRS, fair)
    assert same == made | {"judge_inconsistent": 0.0}
    assert "x|a|aa\n>" in {text.rstrip() for text in fair.seen}
    assert "x|aa|a\n>" in {text.rstrip() for text in fair.seen}  # both orders are asked


def test_a_judges_margin_is_in_nats_of_the_averaged_log_odds(evaluated):
    made, _ = judged(evaluated, MINE, THEIRS, judge_margin=0.25)  # .1 nats a letter
    assert (made["judge_win"], made["judge_tie"], made["judge_lose"]) == (1 / 5, 4 / 5, 0.0)


def test_a_judge_stands_beside_gold(evaluated):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    lm = TellsTexts(prefers_quality(0.1, 0.0), tokenizer)
    sft = PolicyHandle("sft", lambda: SimpleNamespace(lm=lm, tokenizer=tokenizer))
    mine, theirs = Texts("aa", "b"), Texts("a", "a")
    mine["gold"], theirs["gold"] = [0.0, 5.0], [1.0, 0.0]
    settings = {"judge": {**SHORT, "answers": ["A", "B"]}}
    made, asked = evaluated("win_rate", settings, [mine], [theirs], at={"sft": sft})
    assert (made["win"], made["lose"], made["judge_win"], made["judge_lose"]) == (0.5,) * 4
    assert len(made) == 7
    assert asked == []


# Against another run

SMALL = ["iterations=1", "reward_model.updates=20", "rl.rollout_size=16", "rl.minibatch=16"]
SMALL += ["prompts.preference=48", "prompts.held_out=4", "prompts.evaluation=96"]
SMALL += ["backend.threads=1", "evaluation.every=1"]
JUDGE = {
    "template": "{prompt} {second} {first}",
    "lead": "overall",
    "answers": [" great", " awful"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of the world's own length, the opponent."""
    out = tmp_path_factory.mktemp("opponent") / "run"
    return ostinato.run("toy", out, ["iterations=1", "backend.threads=1"]).directory


@pytest.fixture(scope="module")
def matched(trained, tmp_path_factory):
    """A run of two rollouts that is measured against it, by gold and by its own SFT policy."""
    settings = {"margin": 0, "against": str(trained), "judge": JUDGE}
    wanted = f"plugins={json.dumps(['concat', {'win_rate': settings}])}"
    out = tmp_path_factory.mktemp("matched") / "run"
    return ostinato.run("toy", out, [*SMALL, "rl.rollouts=2", wanted])


def counted(leads):
    return [np.mean(leads > 0), np.mean(leads == 0), np.mean(leads < 0)]


def test_against_another_run_counted_again_from_its_checkpoint(matched, trained):
    """Both policies draw again; gold and the judge, text by text, count the rest."""
    config = load_config(matched.directory / "run.yaml")
    end = [row for row in matched.metrics if row["kind"] == "eval"][-1]
    folders = matched.directory, trained
    policies = [Policy.load_checkpoint(f / "iteration-1/policy", 1.0) for f in folders]
    tokenizer = policies[0].tokenizer
    prompts = load_prompts(config.prompts, tokenizer).evaluation.tokens
    purposes = "evaluation", "win_rate opponent"
    mine, theirs = (
        draw_from(p, prompts, config.generation, Draws(0, 1).generator(purpose, end["step"]))
        for p, purpose in zip(policies, purposes, strict=True)
    )
    gold = [ToyGold().score(s.prompts, s.responses, s.finished.tolist()) for s in (mine, theirs)]
    keys = [f"win_rate/against_{name}" for name in ("win", "tie", "lose")]
    assert [end[key] for key in keys] == pytest.approx(counted((gold[0] - gold[1]).numpy()))

    lm = AutoModelForCausalLM.from_pretrained(matched.directory / "sft")
    texts = zip(prompt_texts(tokenizer, prompts), mine.responses, theirs.responses, strict=True)
    rows = [dict(zip(("prompt", "first", "second"), row, strict=True)) for row in texts]
    liked = by_definition(lm, AutoTokenizer.from_pretrained(POLICY), rows, **JUDGE, temperature=1)
    odds = np.round(np.log(liked / (1 - liked)), 6)
    keys = [f"win_rate/against_judge_{name}" for name in ("win", "tie", "lose")]
    assert [end[key] for key in keys] == pytest.approx(counted(odds))
    assert sum(end[key] for key in keys) == pytest.approx(1)


def test_effect_a_trained_opponent_is_harder_to_beat_than_the_sft_policy(matched):
    rows = [row for row in matched.metrics if row["kind"] == "eval"]
    lead, against = (
        np.mean([row[f"win_rate/{prefix}win"] - row[f"win_rate/{prefix}lose"] for row in rows])
        for prefix in ("", "against_")
    )
    assert against < min(lead, 0) - 0.15, (lead, against)


def test_a_policys_checkpoint_may_be_the_opponent(matched, trained, tmp_path):
    """The SFT policy by its path: about as many wins as losses at the start, which is SFT's too."""
    settings = {"margin": 0, "against": str(trained / "sft")}
    wanted = f"plugins={json.dumps(['concat', {'win_rate': settings}])}"
    made = ostinato.run("toy", tmp_path / "run", [*SMALL, "rl.rollouts=1", wanted])
    start = next(row for row in made.metrics if row["kind"] == "eval")
    assert abs(start["win_rate/against_win"] - start["win_rate/against_lose"]) < 0.35
    assert start["win_rate/against_tie"] < 1  # drawn anew, not the very same responses


# Errors: one sentence each


def told(settings):
    config = load_config({"world": "toy", "plugins": [{"win_rate": settings}]})
    with pytest.raises(UserError) as caught:
        check(config, "run.yaml")
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def test_wrong_opponents_and_judges_are_told_by_check(trained, tmp_path):
    key = "run.yaml: plugins.win_rate.against: "
    assert told({"against": "./nowhere"}) == f"{key}no folder '{Path('nowhere').absolute()}'"
    for name in ("~nosuchuser/run", "x" * 300):
        said = told({"against": name, "judge": None})
        assert said.startswith(f"{key}no folder '")
        assert said.endswith(f"{name}'")
    assert told({"judge": {"model": "~nosuchuser/lm"}}).endswith("~nosuchuser/lm'")
    assert told({"against": str(tmp_path)}) == (
        f"{key}'{tmp_path}' holds neither a finished run nor a policy's checkpoint"
    )
    young = tmp_path / "young"
    young.mkdir()
    facts = (trained / "run.yaml").read_text().replace("iterations: 1\n", "iterations: 3\n")
    (young / "run.yaml").write_text(facts)
    assert told({"against": str(young)}).startswith(f"{key}{young}: no iteration is finished yet")
    (young / "metrics.jsonl").write_bytes((trained / "metrics.jsonl").read_bytes())
    assert told({"against": str(young)}) == (
        f"{key}the run in '{young}' is not finished: it has 1 of 3 iterations"
    )
    judge = "run.yaml: plugins.win_rate.judge"
    assert told({"judge": {"model": "./no"}}).startswith(
        f"{judge}.model: no folder '{Path('no').absolute()}'"
    )
    assert told({"judge": {"modl": "x"}}) == f"{judge}.modl: unknown key; did you mean 'model'?"
    assert "template: has no {first}" in told({"judge": {"template": "{second}"}})
    assert "judge_margin: input should be greater than or equal to 0" in told({"judge_margin": -1})


def test_an_opponent_that_reads_other_tokens_or_too_few_is_refused(
    kit, evaluated, trained, tmp_path
):
    made = load_config(
        {
            "policy": {"tokenizer": "bytes", "random": TINY},
            "reward_model": {"random": TINY},
            "prompts": {"data": "none.jsonl"},
        }
    )
    Policy.load(made.policy, 1.0).save(tmp_path)
    settings = {"against": str(tmp_path)}
    wanted = f"plugins={json.dumps([{'win_rate': settings}])}"
    with pytest.raises(UserError) as caught:
        ostinato.run("toy", tmp_path / "run", [*SMALL, "rl.rollouts=1", wanted])
    assert str(caught.value) == (
        f"plugins.win_rate.against: the policy in '{tmp_path}' has another tokenizer than the run's"
    )
    short = {"tokenizer": str(POLICY), "random": TINY | {"max_position_embeddings": 8}}
    Policy.load(made.policy.model_copy(update=short), 1.0).save(tmp_path)
    with pytest.raises(UserError, match="exceeds the opponent's context of 8"):
        ostinato.run("toy", tmp_path / "again", [*SMALL, "rl.rollouts=1", wanted])


TINY = {"model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 2, "intermediate_size": 16}
