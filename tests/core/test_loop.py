"""Algorithm 1 as a run goes through it: which policy, pairs and models go where, on which draws."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
import torch

import ostinato
from distributions import offered
from ostinato import hookimpl
from ostinato.config import draws
from ostinato.data.preferences import Preferences
from ostinato.data.prompts import split_of

MICRO = [
    "prompts.preference=16",
    "prompts.held_out=24",
    "prompts.evaluation=8",
    "preferences.responses=3",
    "generation.temperature=0.7",
    "reward_model.members=2",
    "reward_model.updates=3",
    "reward_model.batch=12",
    "reward_model.accumulate=3",  # of four groups: micro-batches of 2, 1 and 1
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=4",
    "rl.accumulate=2",
]
STOP = 1  # the toy tokenizer's <eos>
WORDS = {k: {16 + 4 * k + i for i in range(4)} for k in (1, 2, 3)}  # tokens, four an iteration


def writing(policy, words):
    """A policy that writes these words, whatever it reads: constant states, constant logits."""
    made = policy.copy()
    with torch.no_grad():
        norm, head = made.lm.base_model.final_layer_norm, made.lm.get_output_embeddings().weight
        norm.weight.zero_()
        norm.bias.fill_(1.0)
        head.zero_()
        head[[STOP, *words]] = 1.0
    return made


class Witness:
    """Writes down what each step is given. What it answers is never what a mix-up would give."""

    seen: dict[str, list] = defaultdict(list)

    @hookimpl
    def combine_data(self, datasets):
        self.seen["combine_data"].append(list(datasets))
        return datasets[0]  # D_k is D~_1

    @hookimpl
    def train_rm(self, fit, initial, data):
        start = {name: p.detach().clone() for name, p in initial.named_parameters()}
        made = fit(initial, data)
        self.seen["train_rm"].append(SimpleNamespace(start=start, data=data, made=made))
        return made

    @hookimpl
    def combine_rm(self, reward_models, datasets):
        self.seen["combine_rm"].append((list(reward_models), list(datasets)))
        return reward_models[0]  # R_k is R~_1

    @hookimpl
    def init_policy(self, history):
        names = [[handle.name for handle in side] for side in (history.initial, history.final)]
        self.seen["init_policy"].append(names)
        return history.final[0] if history.final else history.sft

    @hookimpl
    def reward_transform(self, rewards):
        self.seen["rl_prompts"] += rewards.samples.prompts
        return rewards

    @hookimpl
    def train_policy(self, optimise, initial, reward_model, ctx):
        self.seen["train_policy"].append((initial, reward_model))
        optimise.evaluate(initial, 0)
        optimise(initial, reward_model, evaluate=False)
        made = writing(initial, WORDS[ctx.iteration])
        optimise.evaluate(made, 2)
        return made

    @hookimpl
    def evaluate(self, ctx):
        self.seen["evaluate"].append(ctx.evaluation)
        return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three iterations: the folder, its rows, the events, and what the witness saw."""
    Witness.seen = defaultdict(list)
    events = []
    settings = ["iterations=3", "plugins=[witness, {metarm: {responses: 2}}]", *MICRO]
    with pytest.MonkeyPatch.context() as patch:
        offered(patch, Witness, "witness")
        folder = tmp_path_factory.mktemp("loop") / "run"
        made = ostinato.run("toy", folder, settings, watch=[events.append])
    seen = SimpleNamespace(**Witness.seen)
    return SimpleNamespace(folder=folder, rows=made.metrics, events=events, seen=seen)


def pairs(run, k):
    return Preferences.load(run.folder / f"iteration-{k}" / "preferences")


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_the_pairs_of_an_iteration_are_what_the_policy_before_it_writes(run):
    for k in (1, 2, 3):
        made = pairs(run, k)
        assert len(made.train) == 16 * 3
        assert len(made.held_out) == 24 * 3
        sets = (made.train["chosen_ids"], made.train["rejected_ids"], made.held_out["chosen_ids"])
        meta = [ids for row in made.meta["response_ids"] for ids in row]
        for responses in (*sets, meta):
            written = {token for response in responses for token in response} - {STOP}
            if k > 1:
                assert written
                assert written <= WORDS[k - 1]
            else:  # SFT's
                assert len(written) > 20
        assert set(made.train["iteration"]) == set(made.held_out["iteration"]) == {k}


def test_each_step_draws_on_the_prompts_that_are_set_aside_for_it(run):
    shares = run.events[0].data["config"].prompts.shares
    for k in (1, 2, 3):
        made = pairs(run, k)
        used = {*made.train["prompt"], *made.held_out["prompt"], *made.meta["prompt"]}
        assert {split_of(prompt, shares) for prompt in used} == {"preference"}
    assert {split_of(prompt, shares) for prompt in run.seen.rl_prompts} == {"rl"}
    for found in run.seen.evaluate:
        assert {split_of(prompt, shares) for prompt in found.samples.prompts} == {"evaluation"}
        assert found.samples.prompts == found.sft_samples.prompts


def test_all_pairs_so_far_are_combined_and_each_member_is_trained_on_the_answer(run):
    trained = run.seen.train_rm
    assert len(trained) == 6  # two members an iteration
    for k, datasets in enumerate(run.seen.combine_data, start=1):
        assert [set(data["iteration"]) for data in datasets] == [{i + 1} for i in range(k)]
        for one in trained[2 * k - 2 : 2 * k]:
            assert one.data["chosen"][:] == pairs(run, 1).train["chosen"][:]
    for k, (_, datasets) in enumerate(run.seen.combine_rm, start=1):
        assert [data["chosen"][:] for data in datasets] == [
            pairs(run, i + 1).train["chosen"][:] for i in range(k)
        ]


def test_members_start_apart_and_each_where_it_started_in_every_iteration(run):
    starts = [one.start for one in run.seen.train_rm]
    for member, first in ((0, starts[0]), (1, starts[1])):
        for other in starts[member::2]:
            assert all(torch.equal(p, other[name]) for name, p in first.items())
    differing = [name for name, p in starts[0].items() if not torch.equal(p, starts[1][name])]
    assert differing == ["model.score.weight"]


def test_reward_models_come_in_order_and_the_policy_is_optimised_on_their_combination(run):
    made = [one.made for one in run.seen.train_rm]
    for k, (models, _) in enumerate(run.seen.combine_rm, start=1):
        assert [member for model in models for member in model.members] == made[: 2 * k]
        latest, reward = models[-1], models[0]
        assert run.seen.train_policy[k - 1][1] is reward
        for found in run.seen.evaluate[2 * k - 2 : 2 * k]:
            assert found.reward is reward
            assert found.latest_of(found.samples).tolist() == found.latest.tolist()
            torch.testing.assert_close(
                found.latest, latest.score_samples(found.samples).score.float()
            )


def test_policies_start_where_init_policy_says_and_its_history_is_in_order(run):
    first, second = "iteration-1/policy", "iteration-2/policy"
    assert run.seen.init_policy == [
        [[], []],
        [["sft"], [first]],
        [["sft", first], [first, second]],
    ]
    starts = [initial for initial, _ in run.seen.train_policy]
    sft = run.seen.evaluate[0].sft
    assert same(starts[0].lm, sft.lm)
    assert same(starts[1].lm, writing(sft, WORDS[1]).lm)
    assert same(starts[2].lm, starts[1].lm)
    evals = [row for row in run.rows if row["kind"] == "eval"]
    assert [row["kl_init"] for row in evals[::2]] == [0.0] * 3
    assert evals[0]["kl"] == 0.0
    assert min(row["kl"] for row in evals[1:]) > 1  # to SFT; policy 2 starts from policy 1


def test_a_rows_samples_are_of_its_own_iteration_and_the_last_row_is_summed_up(run):
    evals = [row for row in run.rows if row["kind"] == "eval"]
    assert [(row["iteration"], row["step"]) for row in evals] == [
        (k, step) for k in (1, 2, 3) for step in (0, 2)
    ]
    decode = run.seen.evaluate[0].sft.tokenizer.decode
    for k in (1, 2, 3):
        words = {decode([token]) for token in WORDS[k]}
        texts = [sample["response"] for sample in evals[2 * k - 1]["samples"]]
        assert texts
        assert all(set(text.split()) <= words for text in texts)
    finished = [e for e in run.events if e.kind == "iteration_finished"]
    assert [(e.iteration, e.data["row"]["iteration"]) for e in finished] == [
        (k, k) for k in (1, 2, 3)
    ]
    for event, last in zip(finished, evals[1::2], strict=True):
        assert event.data["row"]["kl"] == last["kl"]
        assert event.data["row"]["length"] == last["length"]


# --- Draws ----------------------------------------------------------------------------------------

# Every method that draws, with two trainings of a reward model and two runs of a policy.
DRAWING = (
    "[sample_data, worst_case, strength, flip, simcse, metarm, brme, warp, agreement, best_of_n, "
    "ptx, gold_labels]"
)


def test_no_two_draws_of_a_run_are_the_same(tmp_path, monkeypatch):
    """A generator's name is asked for once, save for what is meant to stay.

    The order of the data and fresh weights are the same in every iteration, and the order of the
    RL prompts at every rollout of an epoch.
    """
    asked, seed_for = Counter(), draws.seed_for

    def watched(seed, purpose, iteration=0, step=0, rank=0):
        asked[purpose, iteration, step] += 1
        return seed_for(seed, purpose, iteration, step, rank)

    monkeypatch.setattr(draws, "seed_for", watched)
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": f"the soup was {word}"}) + "\n" for word in ("good", "bad"))
    )
    settings = [
        "iterations=2",
        f"plugins={DRAWING}",
        f"plugins.ptx.data={tmp_path / 'corpus.jsonl'}",
        "plugins.strength.models=2",
        "plugins.brme.heads=2",
        "plugins.best_of_n.n=[3]",
        "plugins.gold_labels.mode=sampled",
        "prompts.fresh=true",
        *MICRO,
    ]
    ostinato.run("toy", tmp_path / "run", settings)
    again = {
        name: count
        for name, count in asked.items()
        if count > (2 if name[1] == 0 or name[0].startswith("rl prompts") else 1)
    }
    assert again == {}
    assert len(asked) > 200
