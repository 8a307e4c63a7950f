"""What a stage makes, and what it expects of a hook that it asks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from distributions import offered, plugin
from ostinato import RewardModel, load_config, run
from ostinato.config.errors import UserError
from ostinato.contract.batches import PolicyHandle, PolicyHistory
from ostinato.engine import stages
from ostinato.engine.session import Session, check
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato_worlds.toy import POLICY


@pytest.fixture
def session(policies, monkeypatch):
    """Makes what a stage needs of a session whose one plugin, ``made``, has these hooks."""

    def make(**hooks):
        offered(monkeypatch, plugin(**hooks))
        kit = policies.make(plugins=["made"])
        sft = kit.policy()
        return SimpleNamespace(
            config=kit.config,
            plugins=kit.plugins,
            ctx=kit.ctx,
            sft_policy=sft,
            sft=PolicyHandle("sft", lambda: sft),
            backend=SimpleNamespace(device=torch.device("cpu")),
            name=lambda stage: f"iteration-1/{stage}",
            log_actions=lambda stage: None,
        )

    return make


def initial(s):
    return stages.initial_policy(s, PolicyHistory(s.sft))


def test_a_handle_or_a_new_policy_may_be_where_the_policy_starts(session):
    s = session(init_policy=lambda self, history: history.sft)
    assert initial(s) is s.sft

    def moved(self, history):
        policy = history.sft.load().copy()
        with torch.no_grad():
            next(policy.lm.parameters()).add_(1.0)
        return policy

    s = session(init_policy=moved)
    assert initial(s).name == "iteration-1/policy_init"
    count = next(s.sft_policy.lm.parameters()).numel()
    assert s.plugins.taken_actions()["made.init_policy"] == pytest.approx(count**0.5)


@pytest.mark.parametrize("change", ["add", "negate", "one"])
def test_an_init_policy_that_changes_the_sft_policy_is_refused(session, change):
    def init_policy(self, history):
        *_, last = history.sft.load().lm.parameters()
        with torch.no_grad():
            if change == "add":
                last.add_(1e-3)
            elif change == "negate":  # the norm stays
                last.neg_()
            else:
                last.view(-1)[0] += 1e-4
        return history.sft

    s = session(init_policy=init_policy)
    with pytest.raises(UserError) as caught:
        initial(s)
    assert str(caught.value) == (
        "plugin 'made': hook 'init_policy' changed the weights of the SFT policy in place, which "
        "it is given to read; change a copy"
    )


def test_an_init_policy_of_another_kind_is_refused(session):
    s = session(init_policy=lambda self, history: "sft")
    with pytest.raises(UserError) as caught:
        initial(s)
    assert str(caught.value) == (
        "plugin 'made': hook 'init_policy' answered a str, expected an ostinato.Policy or one "
        "of the history's handles"
    )


def test_a_trained_model_of_another_kind_is_refused(session, monkeypatch):
    s = session(train_rm=lambda self: "model", train_policy=lambda self: {})
    s.log = s.tokenizer = s.draws = s.directory = s.ruler = None
    s.tell = lambda *args, **data: None
    s.initial_reward_model = SimpleNamespace(with_head=lambda draws, purpose: None)
    s.prompts = SimpleNamespace(evaluation=None, rl=PromptSet([], [], []))
    with pytest.raises(UserError) as caught:
        stages.train_reward_model(s, None, SimpleNamespace(meta=None))
    assert str(caught.value) == (
        "plugin 'made': hook 'train_rm' answered a str, expected a RewardModel"
    )
    monkeypatch.setattr(stages, "Evaluator", lambda *args: None)  # it scores before it is asked
    with pytest.raises(UserError) as caught:
        stages.train_policy(s, s.sft, None, None, None)
    assert str(caught.value) == (
        "plugin 'made': hook 'train_policy' answered a dict, expected an ostinato.Policy"
    )


def test_a_reward_model_that_cannot_be_loaded_ends_the_run_before_the_sft(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"reward_model\.\w+: '.*empty' cannot be loaded"):
        run("toy", tmp_path / "run", [f"reward_model.model={tmp_path / 'empty'}"])
    assert not (tmp_path / "run" / "sft").exists()


TINY = ["iterations=1", "reward_model.updates=3", "reward_model.members=2", "rl.rollouts=1"]
TINY += ["rl.rollout_size=8", "rl.minibatch=8", "prompts.preference=8", "prompts.evaluation=4"]


def test_a_run_has_accuracy_by_gold_and_by_labels_that_err(tmp_path):
    """Counted again on the pairs and the members that the run keeps."""
    made = run("toy", tmp_path / "run", [*TINY, "plugins=[{gold_labels: {flip: 0.4}}]"])
    (row,) = [r for r in made.metrics if r["kind"] == "reward_model_trained"]
    folder = tmp_path / "run" / "iteration-1"
    held = Dataset.from_file(str(folder / "preferences" / "held_out.arrow"))
    wanted = {"accuracy": [], "accuracy_labels": []}
    for m in range(2):
        model = RewardModel.load_checkpoint(folder / "reward_model" / f"member-{m}")
        chosen, rejected = (
            model.score(held["prompt"][:], held[side][:], held[f"{side}_finished"][:]).tolist()
            for side in ("chosen", "rejected")
        )
        liked = [(c > r) - (c < r) for c, r in zip(chosen, rejected, strict=True)]
        gold = [
            (r["chosen_gold"] > r["rejected_gold"]) - (r["chosen_gold"] < r["rejected_gold"])
            for r in held
        ]
        label = [int(p > 0.5) for p in held["label"]]
        assert -1 in gold  # some labels err
        for key, truth in (("accuracy", gold), ("accuracy_labels", label)):
            marks = [(1 + a * b) / 2 for a, b in zip(liked, truth, strict=True) if b]
            wanted[key].append(sum(marks) / len(marks))
    for key, shares in wanted.items():
        assert row[key] == pytest.approx(shares)
        assert made.iterations[0][key] == pytest.approx(sum(shares) / 2)
    assert row["accuracy"] != row["accuracy_labels"]


def test_accuracies_are_null_without_held_out_pairs(tmp_path):
    made = run("toy", tmp_path / "run", [*TINY, "prompts.held_out=0"])
    (row,) = [r for r in made.metrics if r["kind"] == "reward_model_trained"]
    assert row["accuracy"] is row["accuracy_labels"] is None
    assert made.iterations[0]["accuracy"] is made.iterations[0]["accuracy_labels"] is None


def values_seen(monkeypatch):
    """(samples, values) of every pass of a policy with a value head."""
    seen, evaluate = [], Policy.evaluate

    def watched(self, samples):
        made = evaluate(self, samples)
        seen.append((samples, made[1].detach().clone()))
        return made

    monkeypatch.setattr(Policy, "evaluate", watched)
    return seen


def test_the_value_model_starts_from_the_newest_reward_model(tmp_path, monkeypatch):
    """In each iteration from that iteration's, not from R_k, which here goes back to the first."""
    seen = values_seen(monkeypatch)
    settings = ["policy.value=reward_model", "iterations=2", "plugins=[worst_case]"]
    run("toy", tmp_path / "run", [*TINY, *settings])
    firsts = seen[0], seen[len(seen) // 2]
    for k, (samples, values) in enumerate(firsts, start=1):
        folder = tmp_path / "run" / f"iteration-{k}" / "reward_model" / "member-0"
        latest = RewardModel.load_checkpoint(folder)
        prompts = samples.prompt_ids[0][samples.prompt_mask[0]].tolist()
        response = samples.response_ids[0][samples.mask[0]].tolist()
        raw, _ = latest.raw([prompts], [response[:-1]])  # all but the token that is valued
        scale = latest.calibration
        assert float(values[0, len(response) - 1]) == pytest.approx(
            float((raw[0, 0] - scale.zeros[0]) / scale.unit), abs=1e-4
        )


SMALL = {"model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 24}


def test_a_value_model_from_a_reward_model_with_another_tokenizer_is_refused(tmp_path):
    other = {"model": None, "tokenizer": "bytes", "random": SMALL}
    source = {"world": "toy", "policy": {"value": "reward_model"}, "reward_model": other}
    with pytest.raises(UserError) as caught:
        run(source, tmp_path / "run", TINY)
    assert str(caught.value) == (
        "policy.value: the value model cannot start from the reward model, whose tokenizer is not "
        "the policy's; give both the same, or set it to separate"
    )
    assert not (tmp_path / "run" / "sft").exists()


def test_a_value_model_whose_context_is_shorter_than_the_policys_is_refused(tmp_path):
    short = {"model": None, "tokenizer": str(POLICY), "random": SMALL}
    source = {"world": "toy", "policy": {"value": "reward_model"}, "reward_model": short}
    with pytest.raises(UserError, match="exceeds the reward model's context of 24; lower it or"):
        run(source, tmp_path / "run", TINY)


# --- The pairs of an iteration --------------------------------------------------------------------


def test_held_out_pairs_and_meta_responses_are_of_prompts_of_their_own(tmp_path):
    """Three responses are three pairs; of held-out prompts nothing is trained on, meta neither."""
    settings = ["plugins=[metarm]", "preferences.responses=3", "generation.temperature=0.7"]
    settings += ["prompts.preference=7", "prompts.held_out=5", "plugins.metarm.responses=4"]
    config = load_config("toy", settings)
    with Session(config, check(config, "toy"), tmp_path / "run") as s:
        s.begin(1, PolicyHistory(s.sft))
        made = stages.gather(s, s.sft_policy, [])
        ids, texts = s.prompts.preference.ids, s.prompts.preference.texts
    assert made.train["prompt_id"][:] == [i for i in ids[:7] for _ in range(3)]
    assert made.held_out["prompt_id"][:] == [i for i in ids[-5:] for _ in range(3)]
    for data in (made.train, made.held_out):
        assert len(set(zip(data["group"], data["prompt_id"], strict=True))) == len(data) / 3
        for row in data.select(range(0, len(data), 3)):
            assert row["chosen_gold"] >= row["rejected_gold"]
    assert made.meta["prompt"][:] == texts[:7]
    assert [len(responses) for responses in made.meta["responses"]] == [4] * 7


# --- What an iteration comes to -------------------------------------------------------------------

GOLD = "gold_sft_std"  # the column that `peak_gold` is the largest of
UNKNOWN = dict.fromkeys(["held_out_accuracy", "accuracy", "accuracy_labels"])


@pytest.mark.parametrize(
    ("golds", "peak"),
    [([0.0, 0.75, 0.25], 0.75), ([-0.5, -2.0], -0.5), ([None, None], None), ([None, -1.0], -1.0)],
)
def test_the_summary_is_the_iterations_last_evaluation_and_its_largest_gold(golds, peak):
    def evaluation(k, step, gold):
        row = {"kind": "eval", "iteration": k, "step": step, GOLD: gold, "samples": [{}]}
        return row | {"kl": k + 0.5 * step, "kl_init": step}

    rows = [
        evaluation(1, 9, 5.0),
        {"kind": "reward_model_trained", "iteration": 2, **UNKNOWN},
        *(evaluation(2, step, gold) for step, gold in enumerate(golds)),
        evaluation(3, 0, 7.0),
    ]
    metrics = SimpleNamespace(rows=lambda: rows)
    made = stages.summary(SimpleNamespace(iteration=2, directory=SimpleNamespace(metrics=metrics)))
    last = len(golds) - 1
    assert (made["peak_gold"], made[GOLD]) == (peak, golds[-1])
    assert (made["kl"], made["kl_init"]) == (2 + 0.5 * last, last)
    assert not {"step", "samples", "iteration"} & set(made)
