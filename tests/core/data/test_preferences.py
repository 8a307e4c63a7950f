"""Preference data: collecting, labelling, exchanging sides, refining, and its Arrow files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distributions import offered, plugin
from ostinato import UserError, swapped
from ostinato.config.draws import Draws
from ostinato.config.sections import GoldSection
from ostinato.data.preferences import (
    Preferences,
    collect_meta,
    comparisons_of,
    draw_responses,
    label,
    own_responses,
    prompts_for,
    select_comparisons,
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


def collect(policy, prompts, ctx, purpose):
    return comparisons_of(own_responses(policy, prompts, ctx, purpose), prompts, ctx)


def test_every_pair_of_responses_is_a_comparison(world):
    ctx, policy, prompts = world
    ctx = replace(ctx, config=ctx.config.model_copy(deep=True))
    ctx.config.preferences.responses = 3
    data = collect(policy, prompts, ctx, "preferences")
    assert len(data) == 6 * 3
    assert data["group"][:] == [g for g in range(6) for _ in range(3)]
    assert data["prompt_id"][:3] == [10, 10, 10]
    pairs = list(zip(data["first_id"][3:6], data["second_id"][3:6], strict=True))
    assert pairs == [("1:11:0", "1:11:1"), ("1:11:0", "1:11:2"), ("1:11:1", "1:11:2")]
    for row in data:
        for side in ("first", "second"):
            ids, done = row[f"{side}_ids"], row[f"{side}_finished"]
            assert (ids[-1] == policy.tokenizer.eos_token_id) == done
            assert policy.tokenizer.decode(ids, skip_special_tokens=True) == row[side]
            assert row[f"{side}_gold"] == len(row[side])
        assert row["prompt_ids"] == prompts.tokens[row["group"]]
    one = {r["first_id"]: r["first"] for r in data}
    assert len(one) == 6 * 2
    assert all(r["second"] == one.get(r["second_id"], r["second"]) for r in data)


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


# --- Which responses, and which pairs -------------------------------------------------------------


def other(self, policy, prompts, ctx):
    """Two responses a prompt by another purpose than the core's."""
    return own_responses(policy, prompts, ctx, "mine")


def test_the_owner_draws_what_is_compared(kit, world, monkeypatch):
    ctx, policy, prompts = world
    one = active(kit, monkeypatch, draw_responses=other)
    made = draw_responses(policy, prompts, one, ctx)
    mine, own = (own_responses(policy, prompts, ctx, p) for p in ("mine", "preferences"))
    assert made.responses == mine.responses
    assert made.prompts == [word for word in WORDS for _ in range(2)]
    differ = [a != b for a, b in zip(mine.tokens[1], own.tokens[1], strict=True)]
    assert sum(differ) > 0
    assert one.taken_actions() == {"made.draw_responses": sum(differ) / 12}
    data = comparisons_of(made, prompts, ctx)
    assert (data["first_id"][1], data["second_id"][1]) == ("1:11:0", "1:11:1")


def test_an_owner_that_draws_as_the_core_does_has_done_nothing(kit, world, monkeypatch):
    ctx, policy, prompts = world

    def same(self, policy, prompts, ctx):
        prompts.ids.clear()  # its own copy of the lists
        return own_responses(policy, world[2], ctx, "preferences")

    one = active(kit, monkeypatch, draw_responses=same)
    made = draw_responses(policy, prompts, one, ctx)
    nobody = kit.make().plugins
    assert made.tokens == draw_responses(policy, prompts, nobody, ctx).tokens
    assert one.taken_actions() == {"made.draw_responses": 0.0}
    assert nobody.taken_actions() == {}
    assert prompts.ids == list(range(10, 16))


def finished(samples, value):
    return replace(samples, finished=torch.full_like(samples.finished, value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.responses, "a list, expected ostinato.Samples"),
        (
            lambda s: s.rows(torch.arange(11)),
            "11 responses, expected 2 for each of the 6 prompts, side by side",
        ),
        (
            lambda s: s.rows(
                torch.arange(12).view(6, 2).T.flatten()
            ),  # all firsts, then all seconds
            "in row 1 a response to another prompt, expected 2 for each of the 6 prompts, side by "
            "side",
        ),
        (
            lambda s: replace(s, mask=torch.zeros_like(s.mask)),
            "in row 0 a response without a token",
        ),
        (
            lambda s: finished(s, True),
            r"in row \d+ a response that is finished and ends with token",
        ),
    ],
)
def test_drawn_responses_are_checked(kit, world, monkeypatch, change, message):
    ctx, policy, prompts = world
    made = lambda self, policy, prompts, ctx: change(other(self, policy, prompts, ctx))  # noqa: E731
    one = active(kit, monkeypatch, draw_responses=made)
    with pytest.raises(UserError, match=f"'draw_responses' answered {message}"):
        draw_responses(policy, prompts, one, ctx)


def test_selections_go_in_order_and_count_what_they_leave_out(kit, world, monkeypatch):
    ctx, policy, prompts = world
    pairs = collect(policy, prompts, ctx, "preferences")
    models = [object(), object()]
    seen = []

    def keep(*rows):
        def select_comparisons(self, comparisons, reward_models):
            seen.append((len(comparisons), reward_models))
            return comparisons.select(rows)

        return plugin(select_comparisons=select_comparisons)

    offered(monkeypatch, keep(5, 0, 2, 3), "first")
    offered(monkeypatch, keep(1, 0), "second")
    one = kit.make("first", "second").plugins
    made = select_comparisons(pairs, models, one, ctx)
    assert made.to_list() == [pairs[0], pairs[5]]
    assert seen == [(6, models), (4, models)]
    wanted = {"first.select_comparisons": 2.0, "second.select_comparisons": 2.0}
    assert one.taken_actions() == wanted
    assert select_comparisons(pairs, models, kit.make().plugins, ctx) is pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.select([]), "answered no rows"),
        (lambda d: d.to_list(), "answered no rows"),
        (lambda d: d.select([0, 3, 0]), "answered row 2, which it was not given, or twice"),
        (
            lambda d: d.map(lambda row: {"second": "x" + row["second"]}),
            "answered row 0, which it was not given, or twice",
        ),
        (
            lambda d: d.add_column("votes", [1] * 6),
            "answered row 0, which it was not given, or twice",
        ),
        (lambda d: d.remove_columns("first_id"), "answered row 0, which it was not given"),
    ],
)
def test_selections_are_checked(kit, world, monkeypatch, change, message):
    ctx, policy, prompts = world
    pairs = collect(policy, prompts, ctx, "preferences")
    one = active(kit, monkeypatch, select_comparisons=lambda self, comparisons: change(comparisons))
    with pytest.raises(UserError, match=f"plugin 'made': hook 'select_comparisons' {message}"):
        select_comparisons(pairs, [], one, ctx)


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
            for column in ("", "_ids", "_finished", "_id", "_gold"):
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
