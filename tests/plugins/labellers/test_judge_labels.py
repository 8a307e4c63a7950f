"""judge_labels: P(first preferred) from the logits of two answers, asked in both orders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    ByT5Tokenizer,
)

import ostinato
from judge_kit import SHORT, TellsTexts, by_definition, prefers_quality, quality
from ostinato import UserError, load_config
from ostinato.contract.batches import PolicyHandle
from ostinato.engine.session import check
from ostinato_plugins.judge import TEMPLATE
from ostinato_plugins.labellers.judge_labels import JudgeLabels

ROOT = Path(__file__).parents[3]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "gpt_neox": {**SIZES, "intermediate_size": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512, "bos_token_id": 1},
    "llama": {**SIZES, "intermediate_size": 32, "num_key_value_heads": 2},
}


def pairs(count=24, seed=0, gold=True):
    """Random words with different qualities, as the core hands them to a labeller."""
    draw, rows = random.Random(seed), []
    while len(rows) < count:
        first, second = ("".join(draw.choices("abcd", k=draw.randint(1, 9))) for _ in range(2))
        if quality(first) != quality(second):
            known = {"first_gold": float(quality(first)), "second_gold": float(quality(second))}
            row = {"prompt": "x" * draw.randint(1, 4), "first": first, "second": second}
            rows.append(row | (known if gold else dict.fromkeys(known)))
    return Dataset.from_list(rows)


def random_lm(family):
    """Weights large enough that the answers' probabilities differ from text to text."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, vocab_size=259, **FAMILIES[family])
        lm = AutoModelForCausalLM.from_config(config)
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return lm.eval()


def judged(kit, data, lm=None, tokenizer=None, /, step=0, **settings):
    """(labels, what was logged) of judge_labels with ``lm`` in the place of the SFT policy."""
    one = kit.make(("judge_labels", settings))
    policy = SimpleNamespace(lm=lm, tokenizer=tokenizer or ByT5Tokenizer(extra_ids=0))
    ctx = one.ctx.at(sft=PolicyHandle("sft", lambda: policy), step=step, logged={})
    labels = one.plugins.one("label", comparisons=data, ctx=ctx)
    return np.array(labels), {k.removeprefix("judge_labels/"): v for k, v in ctx.logged.items()}


# The probability, against the definition


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answers", [(" A", " B"), (" yes", " no"), (" first", " second")])
def test_probabilities_are_those_of_the_definition(kit, family, answers, tmp_path):
    """One token or several, whatever the batch and the padding; a checkpoint from disk."""
    lm, tokenizer = random_lm(family), ByT5Tokenizer(extra_ids=0)
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    data = pairs(7)
    expected = by_definition(lm, tokenizer, data, **SHORT, answers=answers, temperature=0.1)
    assert expected.std() > 0.05
    settings = {**SHORT, "answers": answers, "temperature": 0.1, "model": str(tmp_path)}
    for batch in (1, 5):
        made, _ = judged(kit, data, **settings, batch=batch)
        assert made == pytest.approx(expected, abs=1e-4)


def test_bf16_weights_are_close(kit, tmp_path):
    random_lm("gpt_neox").save_pretrained(tmp_path)
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    settings = {**SHORT, "model": str(tmp_path), "temperature": 0.1}
    exact, rough = (judged(kit, pairs(), **settings, dtype=kind)[0] for kind in ("fp32", "bf16"))
    assert (exact != rough).all()
    assert rough == pytest.approx(exact, abs=0.1)
    assert np.corrcoef(exact, rough)[0, 1] > 0.95


def test_one_token_answers_are_read_once(kit):
    """Both answers follow the same text: one forward row an order, though two probabilities."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    lm = TellsTexts(prefers_quality(1.0, 0.0), tokenizer)
    data = pairs(10)
    judged(kit, data, lm, tokenizer, **SHORT)
    texts = {(r["prompt"], *r_) for r in data for r_ in ((r["first"], r["second"]),)}
    both = texts | {(p, b, a) for p, a, b in texts}
    assert sorted(lm.seen) == sorted("|".join(text) + "\n> " for text in both)


def test_a_bos_token_stands_before_the_question(kit):
    """As the tokenizer puts it before every text, and nothing behind it."""
    tokenizer = ByT5Tokenizer(extra_ids=0)

    class WithBos(ByT5Tokenizer):
        def build_inputs_with_special_tokens(self, ids, more=None):
            return [2, *ids, 1]

    seen = []
    lm = TellsTexts(prefers_quality(1.0, 0.0), tokenizer)
    inner = lm.forward
    lm.forward = lambda input_ids, attention_mask: (
        seen.append(input_ids) or inner(input_ids, attention_mask)
    )
    type(lm).__call__ = lambda self, **given: self.forward(**given)
    judged(kit, pairs(2), lm, WithBos(extra_ids=0), **SHORT)
    assert all((ids[:, 0] == 2).all() and (ids[:, 1:] > 2).any() for ids in seen)
    assert not any((ids[:, 1:] == 1).any() for ids in seen)


# What both orders are for


def test_averaging_the_orders_removes_a_position_bias(kit):
    """A judge that likes the first place more than any difference in quality is right again.

    Asked once it answers A always; the averaged log-odds are strength x the difference exactly.
    """
    data, tokenizer = pairs(40), ByT5Tokenizer(extra_ids=0)
    difference = np.array([quality(r["first"]) - quality(r["second"]) for r in data], float)
    once = 0.1 * difference + 3.0
    assert (once > 0).all()
    biased = TellsTexts(prefers_quality(0.1, 3.0), tokenizer)
    made, logged = judged(kit, data, biased, tokenizer, **SHORT)
    assert made == pytest.approx(1 / (1 + np.exp(-0.1 * difference)), abs=1e-6)
    assert ((made > 0.5) == (difference > 0)).all()
    assert logged["gold_agreement"] == 1.0
    assert logged["inconsistent"] == 1.0
    assert logged["position_bias"] == pytest.approx(3.0, abs=1e-5)
    assert logged["confidence"] == pytest.approx(np.maximum(made, 1 - made).mean())

    fair = TellsTexts(prefers_quality(0.1, 0.0), tokenizer)
    same, logged = judged(kit, data, fair, tokenizer, **SHORT)
    assert same == pytest.approx(made, abs=1e-6)
    assert logged["inconsistent"] == 0.0
    assert logged["position_bias"] == pytest.approx(0.0, abs=1e-6)


def test_inconsistent_is_the_share_that_the_order_decides(kit):
    """Hand numbers: differences 1, 4, -2, -5 against a bias of 3."""
    rows = [("a", ""), ("aaaa", ""), ("", "aa"), ("b", "aaaa")]
    unknown = {"prompt": "x", "first_gold": None, "second_gold": None}
    data = Dataset.from_list([unknown | {"first": a, "second": b} for a, b in rows])
    tokenizer = ByT5Tokenizer(extra_ids=0)
    lm = TellsTexts(prefers_quality(1.0, 3.0), tokenizer)
    made, logged = judged(kit, data, lm, tokenizer, **SHORT, labels="hard")
    assert made.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert logged["inconsistent"] == 0.5
    assert "gold_agreement" not in logged


def test_a_judge_that_sees_only_the_place_is_undecided(kit):
    data, tokenizer = pairs(8), ByT5Tokenizer(extra_ids=0)
    lm = TellsTexts(prefers_quality(0.0, 5.0), tokenizer)
    for kind in ("soft", "hard"):
        made, logged = judged(kit, data, lm, tokenizer, **SHORT, labels=kind)
        assert made.tolist() == [0.5] * 8
        assert logged["gold_agreement"] == 0.5
        assert logged["confidence"] == 0.5


# Constitutional AI


def by_principle(text):
    """Judges as the first sentence that it is given says: by a's, or against them."""
    _, first, second, principles = text.split("|")[:4]
    sign = 1 if principles.startswith("Prefer a") else -1
    return {"A": 0.5 * sign * (first.count("a") - second.count("a")), "B": 0.0}


PRINCIPLED = {**SHORT, "template": "{prompt}|{first}|{second}|{principles}"}


def test_the_principle_decides(kit):
    data, tokenizer = pairs(), ByT5Tokenizer(extra_ids=0)
    for principle, sign in (("Prefer a.", 1), ("Avoid a.", -1)):
        lm = TellsTexts(by_principle, tokenizer)
        made, _ = judged(kit, data, lm, tokenizer, **PRINCIPLED, principles=[principle])
        more = [sign * (r["first"].count("a") - r["second"].count("a")) for r in data]
        assert np.sign(made - 0.5).tolist() == np.sign(more).tolist()


def test_one_principle_is_drawn_for_a_comparison_and_both_orders_share_it(kit):
    data, tokenizer = pairs(), ByT5Tokenizer(extra_ids=0)
    settings = {**PRINCIPLED, "principles": ["Prefer a.", "Avoid a."]}

    def asked(**more):
        lm = TellsTexts(by_principle, tokenizer)
        made, _ = judged(kit, data, lm, tokenizer, **settings, **more)
        return made.tolist(), {tuple(t.split("|")[:3]): t.split("|")[3] for t in lm.seen}

    labels, principle = asked()
    drawn = [principle[r["prompt"], r["first"], r["second"]] for r in data]
    swapped = [principle[r["prompt"], r["second"], r["first"]] for r in data]
    assert drawn == swapped
    assert 6 <= sum(p.startswith("Prefer a.\n") for p in drawn) <= 18  # of 24, evenly drawn
    assert asked() == (labels, principle)  # a resumed run draws the same
    assert asked(step=1)[1] != principle
    _, every = asked(principle="all")
    assert set(every.values()) == {"Prefer a.\nAvoid a.\n\n> "}


# Templates


def test_a_chat_template_makes_it_the_users_turn(kit):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    lm = TellsTexts(prefers_quality(1.0, 0.0), tokenizer)
    data = pairs(1)
    made, _ = judged(kit, data, lm, tokenizer, **SHORT)
    one = "|".join(data[0][key] for key in ("prompt", "first", "second"))
    assert f"<user>{one}<assistant>> " in lm.seen
    plain, _ = judged(kit, data, lm, tokenizer, **SHORT, chat=False)
    assert f"{one}\n> " in lm.seen
    assert plain == pytest.approx(made)


def test_braces_in_a_response_are_text(kit):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    row = {"prompt": "{second}", "first": "{0}a", "second": "}b{"}
    data = Dataset.from_list([row | {"first_gold": None, "second_gold": None}])
    lm = TellsTexts(prefers_quality(1.0, 0.0), tokenizer)
    assert judged(kit, data, lm, tokenizer, **SHORT)[0][0] > 0.5
    assert "{second}|{0}a|}b{\n> " in lm.seen


def test_the_default_template_shows_everything(kit):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    lm = TellsTexts(lambda text: {"A": 1.0, "B": 0.0}, tokenizer)
    judged(kit, pairs(3), lm, tokenizer)
    judged(kit, pairs(3), lm, tokenizer, principles=["Be kind."])
    assert all("Be kind.\nWhich response is better, A or B?" in text for text in lm.seen[-6:])
    assert not any("Be kind" in text for text in lm.seen[:6])
    assert all(text.endswith("A or B?\nThe better response is ") for text in lm.seen)


# Errors: one sentence each


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "./nowhere"}, "plugins.judge_labels.model: no folder '"),
        ({"template": "{prompt} {second}"}, "template: has no {first}, so the judge would not see"),
        ({"template": "{first} {secnd}"}, "template: unknown {secnd}; valid names are prompt, "),
        ({"template": "{first} {second} {"}, "template: "),
        ({"template": "{first!z} {second}"}, "template: cannot be filled in: Unknown conversion"),
        (
            {"template": "{first:{x}} {second:d}"},
            "template: cannot be filled in: 'x'; write a bare",
        ),
        (
            {"template": "{first}{second}", "principles": ["Be kind."]},
            "template: has no {principles}, but there are some",
        ),
        (
            {"template": "{first}{second}{principles}"},
            "template: has {principles}, but there are none",
        ),
        ({"answers": ["A", "A"]}, "answers: both are 'A'"),
        ({"answers": ["A"]}, "plugins.judge_labels.answers"),
        ({"tokenizer": "gpt2"}, "tokenizer: is given without a model"),
        ({"temperature": 0}, "plugins.judge_labels.temperature: input should be greater than 0"),
    ],
)
def test_wrong_settings_are_told_by_check(settings, words):
    config = load_config({"world": "toy", "plugins": [{"judge_labels": settings}]})
    with pytest.raises(UserError) as told:
        check(config, "run.yaml")
    assert words in str(told.value)
    assert str(told.value).count("\n") == 0


def refused(kit, *model, **settings):
    with pytest.raises(UserError) as told:
        judged(kit, pairs(2), *model, **settings)
    assert str(told.value).count("\n") == 0
    return str(told.value)


def test_answers_that_the_tokenizer_does_not_tell_apart(kit):
    """The toy world's word-level tokenizer knows neither A nor B."""
    policy = ROOT / "worlds/ostinato_worlds/toy/policy"
    said = refused(kit, model=str(policy), template="{first} {second}")
    assert said == (
        "plugins.judge_labels.answers: ' A' and ' B' are the same tokens to the judge's tokenizer; "
        "choose two that it tells apart"
    )
    lm, tokenizer = random_lm("gpt_neox"), ByT5Tokenizer(extra_ids=0)
    said = refused(kit, lm, tokenizer, answers=("A", "AB"))
    assert "'A' and 'AB' are the beginning of each other" in said


def test_a_question_without_a_token(kit):
    """A word-level tokenizer makes nothing of white space."""
    policy = ROOT / "worlds/ostinato_worlds/toy/policy"
    empty = {"prompt": "", "first": "", "second": "", "first_gold": None, "second_gold": None}
    settings = {"model": str(policy), "template": "{first} {second}", "lead": ""}
    with pytest.raises(UserError, match="lead: a question has no token before its answer"):
        judged(kit, Dataset.from_list([empty]), **settings, answers=("great", "awful"))


def test_a_question_longer_than_the_model_reads(kit):
    policy = ROOT / "worlds/ostinato_worlds/toy/policy"
    settings = {"template": "the " * 70 + "{first} {second}", "answers": (" great", " awful")}
    said = refused(kit, model=str(policy), **settings)
    assert "plugins.judge_labels.template: the longest question has 7" in said
    assert "but the judge reads 64" in said


def test_models_that_cannot_judge(kit, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    said = refused(kit, model=str(tmp_path / "empty"))
    assert said.startswith(f"plugins.judge_labels.model: '{tmp_path / 'empty'}' cannot be loaded: ")
    config = AutoConfig.for_model("gpt_neox", vocab_size=259, num_labels=1, **FAMILIES["gpt_neox"])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "rm")
    said = refused(kit, model=str(tmp_path / "rm"))
    assert "is no causal language model: its checkpoint holds no '" in said
    random_lm("gpt_neox").save_pretrained(tmp_path / "lm")
    said = refused(kit, model=str(tmp_path / "lm"), tokenizer=str(tmp_path / "empty"))
    wanted = f"plugins.judge_labels.tokenizer: '{tmp_path / 'empty'}' "
    assert said.startswith(wanted)
    said = refused(kit, model=str(tmp_path / "lm"))  # transformers makes one without words
    assert said.startswith(f"plugins.judge_labels.tokenizer: '{tmp_path / 'lm'}' ")


def test_no_code_of_a_checkpoint_is_run(kit, tmp_path):
    """A checkpoint that brings its own model class is refused; its module is not imported."""
    facts = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(facts))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be loaded" in refused(kit, model=str(tmp_path))
    assert not (tmp_path / "ran").exists()


# A whole run


def test_the_documented_run_file(tmp_path):
    """The toy world judged by its own SFT policy: a judge at chance, which its numbers say."""
    small = ["iterations=1", "rl.rollouts=2", "reward_model.updates=3", "prompts.preference=64"]
    small += ["prompts.held_out=4", "prompts.evaluation=8", "rl.rollout_size=8", "rl.minibatch=8"]
    made = ostinato.run(ROOT / "docs/run-files/judge.yaml", tmp_path / "run", small)
    [row] = [r for r in made.metrics if r["kind"] == "actions" and r["stage"] == "preferences"]
    assert row["actions"] == {"judge_labels.label": 68}
    assert row["judge_labels/inconsistent"] > 0.5
    assert 0.5 < row["judge_labels/confidence"] < 0.55
    assert 0.3 < row["judge_labels/gold_agreement"] < 0.7
    data = Dataset.from_file(str(tmp_path / "run/iteration-1/preferences/train.arrow"))
    assert len(set(data["label"])) > 32
    assert not any(label in (0.5, 1.0) for label in data["label"])


def test_the_default_template_has_the_slots_that_the_settings_promise():
    assert JudgeLabels.Config().template == TEMPLATE
    assert all(f"{{{slot}}}" in TEMPLATE for slot in ("prompt", "first", "second", "principles"))
