"""Preference data: collecting, labelling, exchanging sides, refining, and its Arrow files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from distributions import offered, plugin
from ostinato import UserError, swapped
from ostinato.config.draws import Draws
from ostinato.config.sections import GoldSection
from ostinato.data.preferences import (
    Preferences,
    collect,
    collect_meta,
    combine_data,
    label,
    prompts_for,
    refine_data,
    write_arrow,
)
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from policy_kit import PolicyKit, words_tokenizer

WORDS = ["x", "yz", "zzxy", "yy", "xyx", "zz"]


class Letters:
    """A gold that counts the characters of a response."""

    def score(self, prompts, responses, finished):
        return torch.tensor([float(len(r)) for r in responses])


@pytest.fixture(scope="module")
def world(kit):
    """(context, policy, prompts): a random policy over bytes and six prompts."""
    one = kit.make()
    with Draws(0).forked("policy"):
        policy = Policy.load(one.ctx.config.policy, 1.0)
    config = one.ctx.config.model_copy(deep=True)
    config.generation.max_new_tokens = 5
    config.gold = GoldSection.model_construct(batch=4)
    ctx = replace(one.ctx, config=config, gold=Letters())
    tokens = [policy.tokenizer(w, add_special_tokens=False)["input_ids"] for w in WORDS]
    return ctx, policy, PromptSet(list(range(10, 16)), WORDS, tokens)


def test_every_pair_of_responses_is_a_comparison(world):
    ctx, policy, prompts = world
    ctx = replace(ctx, config=ctx.config.model_copy(deep=True))
    ctx.config.preferences.responses = 3
    data = collect(policy, prompts, ctx, "preferences")
    assert len(data) == 6 * 3
    assert data["group"][:] == [g for g in range(6) for _ in range(3)]
    assert data["prompt_id"][:3] == [10, 10, 10]
    pairs = list(zip(data["first_index"][:3], data["second_index"][:3], strict=True))
    assert pairs == [(0, 1), (0, 2), (1, 2)]
    for row in data:
        for side in ("first", "second"):
            ids, done = row[f"{side}_ids"], row[f"{side}_finished"]
            assert (ids[-1] == policy.tokenizer.eos_token_id) == done
            assert policy.tokenizer.decode(ids, skip_special_tokens=True) == row[side]
            assert row[f"{side}_gold"] == len(row[side])
        assert row["prompt_ids"] == prompts.tokens[row["group"]]
    one = {(r["group"], r["first_index"]): r["first"] for r in data}
    same = [r["second"] == one.get((r["group"], r["second_index"]), r["second"]) for r in data]
    assert all(same)


def test_pairs_alone_are_drawn_from_a_nucleus(world):
    """At a top-p of next to nothing a pair is twice the likeliest; no meta response is."""
    ctx, policy, prompts = world
    ctx = replace(ctx, config=ctx.config.model_copy(deep=True))
    ctx.config.generation.preference_top_p = 1e-6
    for purpose in ("preferences", "held-out preferences"):
        data = collect(policy, prompts, ctx, purpose)
        assert data["first_ids"][:] == data["second_ids"][:]
    greedy = policy.lm.generate(
        torch.tensor([prompts.tokens[0]]), max_new_tokens=5, do_sample=False, use_cache=False
    )
    assert data["first_ids"][0] == greedy[0, len(prompts.tokens[0]) :].tolist()
    meta = collect_meta(policy, prompts, 2, ctx)
    assert any(a != b for a, b in meta["response_ids"])


def test_gold_reads_the_prompts_of_the_file(world):
    """Not what the policy's tokenizer makes of them: here it knows no letter but x."""
    ctx = replace(world[0], gold=Reader())
    tokenizer = words_tokenizer(["<unk>", "x", "y"])
    policy = PolicyKit.make(generation={"max_new_tokens": 2}).word_policy(0, tokenizer)
    texts = ["x q", "x  </s>  y", "w"]
    known = PromptSet([0, 1, 2], texts, [tokenizer(t)["input_ids"] for t in texts])
    assert known.tokens[0] == [3, 2]
    data = collect(policy, known, ctx, "preferences")
    assert ctx.gold.seen == [text for text in texts for _ in range(2)]
    assert data["prompt"][:] == texts


class Reader:
    """A gold that keeps what it is asked."""

    def __init__(self):
        self.seen = []

    def score(self, prompts, responses, finished):
        self.seen += prompts
        return torch.zeros(len(prompts))


def test_collecting_is_repeatable_and_differs_by_iteration_and_purpose(world):
    ctx, policy, prompts = world
    first = collect(policy, prompts, ctx, "preferences")
    assert collect(policy, prompts, ctx, "preferences").to_dict() == first.to_dict()
    later = ctx.at(draws=Draws(0, 2), iteration=2)
    assert collect(policy, prompts, later, "preferences")["first"][:] != first["first"][:]
    assert collect(policy, prompts, ctx, "held-out")["first"][:] != first["first"][:]


def test_gold_scores_in_fp32_where_the_policy_samples_in_bf16(world):
    """Rounded to bf16 one pair in a hundred would be tied."""
    ctx, policy, prompts = world
    seen = []

    class Noting:
        def score(self, prompts, responses, finished):
            seen.append(torch.is_autocast_enabled("cpu"))
            return torch.zeros(len(prompts))

    def autocast():
        seen.append("sampling")
        return torch.autocast("cpu", torch.bfloat16)

    collect(policy, prompts, replace(ctx, gold=Noting(), autocast=autocast), "preferences")
    assert seen == ["sampling", *[False] * 3]


def test_without_gold_the_gold_columns_are_null(world):
    ctx, policy, prompts = world
    data = collect(policy, prompts, replace(ctx, gold=None), "preferences")
    assert set(data["first_gold"]) == {None}


def test_meta_responses_come_a_row_a_prompt(world):
    ctx, policy, prompts = world
    data = collect_meta(policy, prompts, 4, ctx)
    assert len(data) == 6
    assert [len(r) for r in data["responses"]] == [4] * 6
    for row in data:
        for text, ids in zip(row["responses"], row["response_ids"], strict=True):
            assert policy.tokenizer.decode(ids, skip_special_tokens=True) == text
        assert row["prompt_ids"] == prompts.tokens[WORDS.index(row["prompt"])]


def test_fresh_prompts_are_redrawn_and_never_held_out(world):
    ctx, _, prompts = world
    ctx = replace(ctx, config=ctx.config.model_copy(deep=True))
    ctx.config.prompts.preference, ctx.config.prompts.held_out = 3, 2
    train, held = prompts_for(prompts, ctx)
    assert (train.ids, held.ids) == ([10, 11, 12], [14, 15])
    ctx.config.prompts.fresh = True
    drawn = [prompts_for(prompts, ctx.at(draws=Draws(0, k))) for k in range(8)]
    assert {tuple(h.ids) for _, h in drawn} == {(14, 15)}
    assert len({tuple(t.ids) for t, _ in drawn}) > 1
    assert all(set(t.ids) <= {10, 11, 12, 13} and len(set(t.ids)) == 3 for t, _ in drawn)


# --- Labels ---------------------------------------------------------------------------------------


def active(kit, monkeypatch, *others, **hooks):
    """Active plugins with one that is made here."""
    offered(monkeypatch, plugin(**hooks))
    return kit.make("made", *others).plugins


def test_the_preferred_response_becomes_chosen_with_all_its_columns(kit, world, monkeypatch):
    ctx, policy, prompts = world
    pairs = collect(policy, prompts, ctx, "preferences")
    wanted = [1.0, 0.0, 0.7, 0.2, 0.5, 1.0]
    one = active(kit, monkeypatch, label=lambda self: wanted)
    data = label(pairs, one, ctx)
    for row, before, p in zip(data, pairs, wanted, strict=True):
        sides = ("first", "second") if p >= 0.5 else ("second", "first")
        for new, old in zip(("chosen", "rejected"), sides, strict=True):
            for column in ("", "_ids", "_finished", "_index", "_gold"):
                assert row[f"{new}{column}"] == before[f"{old}{column}"]
        assert row["label"] == pytest.approx(max(p, 1 - p))
        assert (row["margin"], row["weight"]) == (0.0, 1.0)
    assert not [c for c in data.column_names if c.startswith(("first", "second"))]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], "answered 1 labels for 6 comparisons"),
        ([2.0] * 6, r"outside \[0, 1\]"),
        ([float("nan")] * 6, r"outside \[0, 1\]"),
    ],
)
def test_wrong_labels_are_one_sentence(kit, world, monkeypatch, answer, message):
    ctx, policy, prompts = world
    pairs = collect(policy, prompts, ctx, "preferences")
    one = active(kit, monkeypatch, label=lambda self: answer)
    with pytest.raises(UserError, match=message):
        label(pairs, one, ctx)


# --- D_k ------------------------------------------------------------------------------------------


def test_swapped_exchanges_every_column_of_the_sides(comparisons):
    data = comparisons(4).add_column("chosen_extra", list("abcd"))
    data = data.add_column("rejected_extra", list("wxyz"))
    made = swapped(data, [True, False, True, False])
    for row, before, flip in zip(made, data, [True, False] * 2, strict=True):
        for column in data.column_names:
            other = column
            if flip and column.startswith("chosen"):
                other = column.replace("chosen", "rejected")
            elif flip and column.startswith("rejected"):
                other = column.replace("rejected", "chosen")
            assert row[column] == before[other]
    assert made.features == data.features
    assert swapped(made, [True, False, True, False]).to_dict() == data.to_dict()


def test_combined_data_without_rows_or_columns_is_refused(kit, comparisons, monkeypatch):
    data = comparisons(4)
    for change, message in (
        (lambda d: d.select([]), "answered no rows"),
        (lambda d: d.remove_columns(["weight"]), "lost the column weight"),
    ):
        given = change(data)

        def combine(self, datasets):
            return given  # noqa: B023

        one = active(kit, monkeypatch, combine_data=combine)
        with pytest.raises(UserError, match=f"plugin 'made': hook 'combine_data' {message}"):
            combine_data([data], one, kit.make().ctx)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.select([]), r"should answer 1\.\.4 rows"),
        (lambda d: Dataset.from_list([*d, *d]), r"should answer 1\.\.4 rows"),
        (lambda d: d.remove_columns(["label"]), "lost the column label"),
        (
            lambda d: Dataset.from_dict(d.to_dict() | {"margin": [float("inf")] * 4}),
            "made margin not finite",
        ),
        (
            lambda d: Dataset.from_dict(d.to_dict() | {"weight": [0.0] * 4}),
            "made every weight 0",
        ),
        (
            lambda d: d.add_column("votes", [1, 2, 3, 4]),
            "added column 'votes', which the plugin does not declare in `provides`",
        ),
    ],
)
def test_refinements_are_checked(kit, comparisons, monkeypatch, change, message):
    one = active(kit, monkeypatch, refine_data=lambda self, data: change(data))
    with pytest.raises(UserError, match=f"plugin 'made': hook 'refine_data' {message}"):
        refine_data(comparisons(4), one, kit.make().ctx)


def test_the_magnitude_of_a_refinement_is_the_rows_that_it_changed(kit, comparisons, monkeypatch):
    def refine(self, data):
        return Dataset.from_dict(data.to_dict() | {"weight": [1.0, 2.0, 1.0, 3.0]})

    one = active(kit, monkeypatch, refine_data=refine)
    refine_data(comparisons(4), one, kit.make().ctx)
    assert one.taken_actions() == {"made.refine_data": 2.0}


# --- Files ----------------------------------------------------------------------------------------


def test_preferences_come_back_as_they_were(comparisons, tmp_path):
    made = Preferences(comparisons(5), comparisons(2, seed=1))
    made.save(tmp_path)
    again = Preferences.load(tmp_path)
    assert again.train.to_dict() == made.train.to_dict()
    assert again.held_out.to_dict() == made.held_out.to_dict()
    assert again.meta is None


def test_equal_rows_make_equal_bytes(comparisons, tmp_path):
    """Whatever chunks and indices a data set went through: resumed runs must agree in every bit."""
    data = comparisons(6)
    write_arrow(data, tmp_path / "a")
    turned = data.select(range(5, -1, -1)).select(range(5, -1, -1))
    write_arrow(turned, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
