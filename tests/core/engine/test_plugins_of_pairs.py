"""Plugins that choose what is compared, what is labelled, and what is trained on, in whole runs."""

from __future__ import annotations

from statistics import mean, stdev

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import ostinato
from distributions import offered
from ostinato import Pause, RewardModel, UserError, hookimpl
from ostinato.data.identity import response_id

TINY = [
    "iterations=2",
    "prompts.preference=8",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "reward_model.updates=3",
    "rl.rollouts=1",
    "rl.rollout_size=8",
    "rl.minibatch=8",
]
N = 6
HELD_OUT = "held_out"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Runs toy with these plugin classes; again in the same folder where it is there."""

    def run(*made, folder="run", settings=()):
        for one in made:
            offered(monkeypatch, one, one.__name__)
        listed = f"plugins=[{', '.join(one.__name__ for one in made)}]"
        return ostinato.run("toy", tmp_path / folder, [*TINY, listed, *settings])

    return run


def pairs(run, k, part="train"):
    file = run.directory / f"iteration-{k}" / "preferences" / f"{part}.arrow"
    return Dataset.from_file(str(file))


def actions(run, key, k):
    rows = [r for r in run.metrics if r["iteration"] == k and r["kind"] == "actions"]
    return [row["actions"][key] for row in rows if key in row["actions"]]


def text_scores(run, k, prompts, responses, finished):
    """By R~_k as the run saved it, from text."""
    folder = run.directory / f"iteration-{k}" / "reward_model"
    return RewardModel.load_checkpoint(folder).score(prompts, responses, finished).tolist()


# --- draw_responses -------------------------------------------------------------------------------


class WestOfN:
    """Best against worst of N by the last reward model (West-of-N)."""

    seen: list = []

    @hookimpl
    def draw_responses(self, policy, prompts, ctx):
        if not ctx.reward_models:
            return ctx.sample(policy, prompts, "west of n", count=2)
        drawn = ctx.sample(policy, prompts, "west of n", count=N)
        self.seen.append(drawn)
        scores = ctx.reward_models[-1].score_samples(drawn).score.view(-1, N)
        ends = torch.stack([scores.argmax(1), scores.argmin(1)], dim=1)
        return drawn.rows((ends + N * torch.arange(len(scores))[:, None]).flatten())


def test_best_and_worst_of_n_are_what_is_compared(toy):
    WestOfN.seen = []
    run = toy(WestOfN)
    default = toy(folder="default")
    (drawn,) = WestOfN.seen
    finished = drawn.finished.tolist()
    scores = text_scores(run, 1, drawn.prompts, drawn.responses, finished)
    data = pairs(run, 2)
    assert len(data) == 8
    for place, row in enumerate(data):
        among = range(place * N, (place + 1) * N)
        best, worst = (pick(among, key=scores.__getitem__) for pick in (max, min))
        texts = {row["chosen_id"]: row["chosen"], row["rejected_id"]: row["rejected"]}
        wanted = (drawn.responses[best], drawn.responses[worst])
        names = [response_id(2, row["prompt_id"], number) for number in (0, 1)]
        assert texts == dict(zip(names, wanted, strict=True))
        assert drawn.prompts[place * N] == row["prompt"]
    # the held-out ones are the core's own, whoever draws the others
    assert pairs(run, 1, HELD_OUT).to_dict() == pairs(default, 1, HELD_OUT).to_dict()
    mine, own = (ids(pairs(each, 1)) for each in (run, default))
    share = sum(mine[name] != own[name] for name in own) / len(own)
    assert actions(run, "WestOfN.draw_responses", 1) == [share]


def ids(data):
    """{id: tokens} of the responses."""
    sides = ("chosen", "rejected")
    return {row[f"{side}_id"]: row[f"{side}_ids"] for row in data for side in sides}


# --- select_comparisons ---------------------------------------------------------------------------


class Active:
    """The half of the pairs that the last reward model is least sure of."""

    given: list = []

    @hookimpl
    def select_comparisons(self, comparisons, reward_models, ctx):
        Active.given.append(comparisons.to_list())
        if not reward_models:
            return comparisons.select(range(len(comparisons) // 2))
        assert ctx.reward_models == tuple(reward_models)
        sides = [ctx.responses(comparisons, side) for side in ("first", "second")]
        first, second = (reward_models[-1].score_samples(side).score for side in sides)
        order = (first - second).abs().argsort(stable=True)
        return comparisons.select(sorted(order[: len(order) // 2].tolist()))


class Person:
    """Counts what is asked; in the second iteration there is a pause first."""

    asked: list = []
    pauses = 0

    @hookimpl
    def label(self, comparisons, ctx):
        if ctx.iteration == 2 and not Person.pauses:
            Person.pauses += 1
            raise Pause("nobody is there")
        Person.asked.append(comparisons.to_list())
        golds = zip(comparisons["first_gold"], comparisons["second_gold"], strict=True)
        return [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in golds]


def test_labels_are_asked_for_what_was_selected_alone(toy):
    Active.given, Person.asked, Person.pauses = [], [], 1
    run = toy(Active, Person, settings=["preferences.responses=3"])
    assert len(Active.given) == len(Person.asked) == 2
    for k, asked in enumerate(Person.asked, start=1):
        assert len(asked) == 8 * 3 // 2 + 4 * 3  # half of the pairs, and all that are held out
        named = [{row["first_id"], row["second_id"]} for row in asked]
        kept = [
            {r["chosen_id"], r["rejected_id"]} for r in (*pairs(run, k), *pairs(run, k, HELD_OUT))
        ]
        assert named == kept
        assert actions(run, "Active.select_comparisons", k) == [12.0]
        assert actions(run, "Person.label", k) == [24.0]
        trained = pairs(run, k).to_list()
        assert {row["iteration"] for row in trained} == {k}
    assert [row["group"] for row in Person.asked[0][:12]] == [g for g in range(4) for _ in range(3)]


def test_the_least_sure_pairs_are_those_that_are_labelled(toy):
    Active.given, Person.asked, Person.pauses = [], [], 1
    run = toy(Active, Person, settings=["preferences.responses=3"])
    distance = {}
    for row in Active.given[1]:
        prompts, texts = [row["prompt"]] * 2, [row["first"], row["second"]]
        finished = [row["first_finished"], row["second_finished"]]
        a, b = text_scores(run, 1, prompts, texts, finished)
        distance[row["first_id"], row["second_id"]] = abs(a - b)
    asked = [(row["first_id"], row["second_id"]) for row in Person.asked[1][:12]]
    assert set(asked) == set(sorted(distance, key=distance.__getitem__)[:12])
    assert len(distance) == 24


def test_what_was_selected_is_kept_while_a_person_is_waited_for(toy):
    """Nothing is drawn or selected anew, and the row of actions says what was done before."""
    Active.given, Person.asked, Person.pauses = [], [], 1
    whole = toy(Active, WestOfN, Person, folder="whole")
    Active.given, Person.asked, Person.pauses = [], [], 0
    with pytest.raises(Pause):
        toy(Active, WestOfN, Person)
    assert len(Active.given) == 2
    run = toy(Active, WestOfN, Person)
    assert len(Active.given) == 2
    for name in ("Active.select_comparisons", "WestOfN.draw_responses", "Person.label"):
        assert actions(run, name, 2) == actions(whole, name, 2) != []
    timeless = [[{**r, "seconds": None} for r in each.metrics] for each in (run, whole)]
    assert timeless[0] == timeless[1]


# --- refine_data ----------------------------------------------------------------------------------


class Robust:
    """RRM's rows: one's own response before another prompt's; a tie where both are foreign."""

    @hookimpl
    def refine_data(self, data):
        rows = data.to_list()
        for place, row in enumerate(data):
            other = data[(place + 1) % len(data)]
            theirs = {side: part(other, side) for side in ("chosen", "rejected")}
            foreign = renamed(theirs["chosen"], "chosen", "rejected") | {"rejected_gold": None}
            rows.append(row | foreign)
            nulls = {"chosen_gold": None, "rejected_gold": None, "label": 0.5}
            rows.append(row | theirs["chosen"] | theirs["rejected"] | nulls)
        return Dataset.from_list(rows)


def part(row, side):
    return {key: value for key, value in row.items() if key.startswith(side)}


def renamed(columns, old, new):
    return {key.replace(old, new, 1): value for key, value in columns.items()}


class Mistaken(Robust):
    """The same, but for the response's id, which stays that of the prompt's own."""

    @hookimpl
    def refine_data(self, data):
        rows = Robust.refine_data(self, data).to_list()
        rows[len(data)] |= {"rejected_id": data[0]["rejected_id"]}
        return Dataset.from_list(rows)


def test_a_run_trains_on_rows_that_a_plugin_added(toy):
    run = toy(Robust)
    data = Dataset.from_file(str(run.directory / "iteration-1" / "data" / "data.arrow"))
    assert len(data) == 3 * 8
    assert actions(run, "Robust.refine_data", 1) == [16.0]
    foreign = data[8]
    assert foreign["prompt"] == data[0]["prompt"] != data[1]["prompt"]
    assert (foreign["chosen_id"], foreign["rejected_id"]) == (
        data[0]["chosen_id"],
        data[1]["chosen_id"],
    )
    evaluated = [row for row in run.metrics if row["kind"] == "eval"]
    assert evaluated
    assert all(row["gold_training_std"] is not None for row in evaluated)


def test_the_scale_of_gold_is_that_of_the_responses_whose_gold_is_known(toy):
    run = toy(Robust, settings=["iterations=1"])
    data = Dataset.from_file(str(run.directory / "iteration-1" / "data" / "data.arrow"))
    golds = [g for side in ("chosen", "rejected") for g in data[f"{side}_gold"] if g is not None]
    assert len(golds) == 24  # of 48
    sft = load_file(run.directory / "ruler" / "ruler.safetensors")["gold"].tolist()
    for row in (row for row in run.metrics if row["kind"] == "eval"):
        gold = mean(sft) + stdev(sft) * row["gold_sft_std"]
        wanted = (gold - mean(golds)) / stdev(golds)
        assert row["gold_training_std"] == pytest.approx(wanted, abs=1e-5)


def test_a_row_with_another_prompts_response_under_its_own_id_ends_the_run(toy):
    """It trained on the prompt's own response instead, and nobody was told."""
    with pytest.raises(UserError) as caught:
        toy(Mistaken)
    assert str(caught.value).startswith(
        "plugin 'Mistaken': hook 'refine_data' answered a row 8: rejected_id '1:"
    )
    assert str(caught.value).endswith(
        "' is another response's; a new response needs an id of its own"
    )
