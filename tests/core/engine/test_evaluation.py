"""Every number of an eval row against NumPy on the samples it was measured on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr

import ostinato
from ostinato.config.draws import Draws
from ostinato.config.errors import NonFiniteError
from ostinato.contract.batches import PolicyHandle
from ostinato.contract.context import Context, Evaluation
from ostinato.engine.evaluation import Evaluator
from ostinato.models.generation import sample
from ostinato.models.prompts import PromptSet
from ostinato.models.reward import Reward
from ostinato.models.ruler import Ruler
from ostinato.models.samples import Scores

PROMPTS = [[2, 3], [4], [5, 2, 2], [3, 3], [2, 5], [4, 4, 4], [5], [3]]


class WordGold:
    """Longer responses with more of the word b are better."""

    def score(self, prompts, responses, finished):
        pairs = zip(responses, finished, strict=True)
        return torch.tensor([r.count("b") + 0.3 * len(r.split()) + 0.1 * f for r, f in pairs])


class Fake(Reward):
    """A reward that is a function of samples."""

    def __init__(self, function):
        self.function = function

    def scores(self, samples):
        return Scores(self.function(samples))


def training_data(gold):
    """D_k: ten comparisons of one length or another, with golds where there is a gold model."""
    rows = [
        {
            "prompt": f"prompt {i}",
            "prompt_ids": PROMPTS[i % 8],
            "chosen_ids": [3, 4][: 1 + i % 2],
            "rejected_ids": [4] * (1 + i % 3),
            "chosen_finished": True,
            "rejected_finished": i % 2 == 0,
            "chosen_gold": 0.1 * i if gold else None,
            "rejected_gold": -0.2 * i if gold else None,
        }
        for i in range(10)
    ]
    return Dataset.from_list(rows)


def proxy_score(samples):
    """Float64 comes in too: rows are fp32 on the CPU whatever a reward answers."""
    return (samples.response_ids == 3).double().sum(1) + 0.5 * (samples.response_ids == 4).sum(1)


def evaluator(policies, gold=True, proxy=proxy_score, temperature=1.0):
    generation = {"max_new_tokens": 5, "temperature": temperature}
    kit = policies.make(generation=generation, gold={"model": "unused"} if gold else None)
    sft, initial, policy = (kit.word_policy(seed) for seed in (0, 1, 2))
    handle = PolicyHandle("sft", lambda: sft)
    kit.ctx = kit.ctx.at(gold=WordGold() if gold else None, sft=handle)
    texts = [" ".join(map(str, p)) for p in PROMPTS]
    prompts = PromptSet(list(range(len(PROMPTS))), texts, PROMPTS)
    before = sample(sft, PROMPTS, kit.ctx.config.generation, kit.ctx.generator("before"))
    made = Evaluator(
        prompts,
        initial,
        Fake(proxy),
        Fake(lambda s: proxy_score(s) * 2 - s.lengths),
        training_data(gold),
        kit.plugins,
        kit.ctx.at(ruler=Ruler(before, before, kit.ctx.gold_scores(before))),
    )
    return made, policy


def drawn(made, policy, step):
    """The samples of the row, drawn again from the same generator."""
    generator = made.ctx.at(step=step).generator("evaluation")
    return sample(policy, PROMPTS, made.ctx.config.generation, generator)


def exact_kl(policy, other, samples, temperature):
    """Row by row from whole logits, float64."""
    found = []
    for i, prompt in enumerate(PROMPTS):
        response = samples.response_ids[i][samples.mask[i]].tolist()
        tables = []
        for model in (policy, other):
            with torch.no_grad():
                logits = model.lm(input_ids=torch.tensor([prompt + response])).logits[0]
            scaled = logits[len(prompt) - 1 : -1].double().numpy() / temperature
            tables.append(scaled - np.log(np.exp(scaled).sum(-1, keepdims=True)))
        found.append((np.exp(tables[0]) * (tables[0] - tables[1])).sum())
    return np.array(found)


def mmd2(x, y):
    """Gretton et al. 2012, equation 3, by loops; the bandwidth is the median distance."""
    pool = np.concatenate([x, y])
    distances = [abs(a - b) for i, a in enumerate(pool) for b in pool[i + 1 :]]
    width = np.median(distances) or np.median([d for d in distances if d > 0])

    def kernel(a, b):
        return np.exp(-((a - b) ** 2) / (2 * width**2))

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(a, b) for a in x for b in y)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


def beats(ours, theirs):
    """1, 1/2 or 0 a prompt."""
    return np.array(
        [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    )


def error(values):
    """The standard error of a mean over prompts."""
    return values.std(ddof=1) / len(values) ** 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_number_of_a_row_equals_numpy(policies, temperature):
    made, policy = evaluator(policies, temperature=temperature)
    row = made(policy, step=3)
    samples, before = drawn(made, policy, 3), made.ctx.ruler.evaluation
    proxy, sft_proxy = proxy_score(samples).numpy(), proxy_score(before).numpy()
    latest, sft_latest = (
        p * 2 - s.lengths.numpy() for p, s in ((proxy, samples), (sft_proxy, before))
    )

    def gold_of(of):
        return WordGold().score(of.prompts, of.responses, of.finished.tolist()).numpy()

    raw, sft_gold = gold_of(samples).astype(float), gold_of(before).astype(float)
    gold = (raw - sft_gold.mean()) / sft_gold.std(ddof=1)
    own = (proxy - sft_proxy.mean()) / sft_proxy.std(ddof=1)
    alone = [(x - x.mean()) / x.std(ddof=1) for x in (proxy, gold)]
    won = {
        "proxy": beats(proxy, sft_proxy),
        "latest": beats(latest, sft_latest),
        "gold": beats(raw, sft_gold),
    }
    trained = [
        (response.count(3) + 0.5 * response.count(4))
        for side in ("chosen_ids", "rejected_ids")
        for response in made.data[side]
    ]
    trained_gold = np.array([*made.data["chosen_gold"], *made.data["rejected_gold"]])
    proxy_trained = (proxy - np.mean(trained)).mean() / np.std(trained, ddof=1)
    gold_trained = (raw - trained_gold.mean()).mean() / trained_gold.std(ddof=1)
    wanted = {
        **{f"{name}_wins": values.mean() for name, values in won.items()},
        **{f"{name}_wins_se": error(values) for name, values in won.items()},
        "gap": won["proxy"].mean() - won["gold"].mean(),
        "gap_se": error(won["proxy"] - won["gold"]),
        "gap_latest": won["latest"].mean() - won["gold"].mean(),
        "gap_latest_se": error(won["latest"] - won["gold"]),
        "gold_sft_std": gold.mean(),
        "proxy_sft_std": own.mean(),
        "latest_sft_std": ((latest - sft_latest.mean()) / sft_latest.std(ddof=1)).mean(),
        "proxy_training_std": proxy_trained,
        "gold_training_std": gold_trained,
        "gap_training_std": proxy_trained - gold_trained,
        "kl": exact_kl(policy, made.sft, samples, temperature).mean(),
        "kl_init": exact_kl(policy, made.reference, samples, temperature).mean(),
        "mmd": mmd2(own, gold),
        "mmd_batch": mmd2(*alone),
        "spearman": spearmanr(proxy, gold).statistic,
        "length": samples.mask.numpy().sum(1).mean(),
        "finished": samples.finished.numpy().mean(),
    }
    texts = row.pop("samples")
    assert set(row) == set(wanted)
    for name, value in wanted.items():
        assert row[name] == pytest.approx(value, abs=2e-5), name
    assert row["kl"] > 0.1
    assert [t["response"] for t in texts] == samples.responses[:3]
    assert [t["prompt"] for t in texts] == made.prompts.texts[:3]
    assert [t["gold"] for t in texts] == pytest.approx(gold[:3].tolist(), abs=1e-5)
    json.dumps(row, allow_nan=False)


def test_without_gold_its_columns_are_null(policies):
    made, policy = evaluator(policies, gold=False)
    row = made(policy, step=0)
    of_gold = {name for name in row if "gold" in name or "gap" in name}
    assert {"gold_wins", "gold_wins_se", "gap_se", "gold_sft_std", "gap_training_std"} < of_gold
    assert all(row[name] is None for name in of_gold | {"mmd", "mmd_batch", "spearman"})
    assert all(text["gold"] is None for text in row["samples"])
    ours, theirs = (proxy_score(s).numpy() for s in (drawn(made, policy, 0), made.before))
    assert row["proxy_wins"] == beats(ours, theirs).mean() != 0.5


@pytest.mark.parametrize("change", [np.exp, lambda x: x**3 / 1000, lambda x: 7 + 1e-4 * x])
def test_the_gap_is_the_same_under_any_increasing_change_of_a_reward(policies, change):
    rows = []
    for function in (proxy_score, lambda s: torch.as_tensor(change(proxy_score(s).numpy()))):
        made, policy = evaluator(policies, proxy=function)
        rows.append(made(policy, step=1))
    names = ("proxy_wins", "proxy_wins_se", "gap", "gap_se", "spearman")
    assert [rows[0][n] for n in names] == pytest.approx([rows[1][n] for n in names], abs=1e-9)
    assert rows[0]["gap"] != 0
    assert rows[0]["gap_training_std"] != pytest.approx(rows[1]["gap_training_std"], abs=1e-3)


def test_equal_responses_tie_whatever_rounding_makes_of_their_scores(policies, monkeypatch):
    made, _ = evaluator(policies, proxy=lambda s: proxy_score(s) + 1e-6 * torch.rand(len(s)))
    row = made(made.sft, step=0)
    monkeypatch.setattr(Context, "sample", lambda *_: made.before)
    row = made(made.sft, step=0)
    shares = {row[f"{name}_wins"] for name in ("proxy", "latest", "gold")}
    assert shares == {0.5}
    assert row["gap"] == row["gap_se"] == 0.0


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6])
def test_a_gold_without_spread_has_no_scale_and_a_small_one_has(policies, scale):
    made, policy = evaluator(policies)
    made.ctx = made.ctx.at(gold=Scaled(scale))
    ruler = Ruler(made.before, made.before, made.ctx.gold_scores(made.before))
    made.ctx = made.ctx.at(ruler=ruler)
    made.__post_init__()
    row = made(policy, step=1)
    plain, other = evaluator(policies)
    wanted = plain(other, step=1)
    if scale == 0:
        assert row["gold_sft_std"] is row["mmd"] is row["mmd_batch"] is None
        assert row["gold_wins"] == 0.5
        assert all(text["gold"] is None for text in row["samples"])
    else:
        assert row["gold_sft_std"] == pytest.approx(wanted["gold_sft_std"], rel=1e-4)
        assert row["gold_wins"] == wanted["gold_wins"]
    json.dumps(row, allow_nan=False)


class Scaled(WordGold):
    """The same gold in another unit."""

    def __init__(self, scale):
        self.scale = scale

    def score(self, *texts):
        return super().score(*texts) * self.scale


def test_a_constant_reward_has_null_spearman_and_a_row_that_json_holds(policies):
    made, policy = evaluator(policies, proxy=lambda s: torch.full((len(s),), 2.0))
    made.latest = made.reward
    made.__post_init__()
    row = made(policy, step=0)
    assert row["spearman"] is None
    assert row["proxy_wins"] == row["latest_wins"] == 0.5
    assert row["proxy_sft_std"] is row["latest_sft_std"] is row["proxy_training_std"] is None
    json.dumps(row, allow_nan=False)


def test_evaluate_hooks_see_the_sample_and_their_numbers_join_the_row(policies, monkeypatch):
    made, policy = evaluator(policies)
    seen = []

    def each(hook, ctx):
        assert hook == "evaluate"
        seen.append(ctx.evaluation)
        yield "best_of_n", {"gold": 1.5, "peak": np.float32(2.5)}

    monkeypatch.setattr(made.plugins, "each", each)
    row = made(policy, step=2)
    assert (row["best_of_n/gold"], row["best_of_n/peak"]) == (1.5, 2.5)
    (found,) = seen
    assert isinstance(found, Evaluation)
    assert float(found.kl.mean()) == pytest.approx(row["kl"])
    assert float(found.gold.mean()) == pytest.approx(row["gold_sft_std"], abs=1e-6)
    # each side is scored as itself: the policy's sample and SFT's, the newest model's score and R_k
    sft = found.sft_samples
    assert sft is made.ctx.ruler.evaluation
    assert float(found.sft_gold.mean()) == pytest.approx(0.0, abs=1e-6)  # in its own units
    assert float(found.sft_gold.std()) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(found.gold_of(found.samples), found.gold)
    assert torch.equal(found.gold_of(sft), found.sft_gold)
    torch.testing.assert_close(found.proxy_of(sft), proxy_score(sft).float())
    newest = (2 * proxy_score(sft) - sft.lengths).float()
    torch.testing.assert_close(found.latest_of(sft), newest)
    assert torch.equal(found.latest_of(found.samples), found.latest)
    assert not torch.equal(found.latest, found.proxy)


def test_further_draws_differ_by_purpose_and_not_by_who_drew_before(policies, monkeypatch):
    """Each (purpose, policy) has its generator: whatever else a plugin, or another one, draws."""
    made, policy = evaluator(policies)

    def draws(*purposes):
        seen = {}

        def each(hook, ctx):
            found = ctx.evaluation
            for purpose in purposes:
                seen[purpose] = found.draw(purpose).responses
            seen["row"], seen["other"] = found.samples.responses, found.draw("two", found.sft)
            yield "mine", {}

        monkeypatch.setattr(made.plugins, "each", each)
        made(policy, step=2)
        return seen

    one, two, both = draws("one"), draws("two"), draws("one", "two")
    assert both["one"] == one["one"]
    assert draws("two", "one")["two"] == two["two"] == both["two"]
    assert both["one"] != both["two"]
    assert both["row"] not in (both["one"], both["two"])
    assert draws("evaluation")["row"] == both["row"] == draws()["row"]
    assert both["other"].responses == draws()["other"].responses != both["two"]
    made.ctx = made.ctx.at(draws=Draws(0, 2))
    assert draws("one")["one"] != both["one"]  # in another iteration


@pytest.mark.parametrize("value", [float("nan"), -np.inf, torch.tensor(float("inf"))])
def test_a_metric_that_is_not_finite_stops_the_run(policies, monkeypatch, value):
    made, policy = evaluator(policies)
    answers = [("mine", {"fine": 1.0, "peak": value})]
    monkeypatch.setattr(made.plugins, "each", lambda hook, ctx: iter(answers))
    with pytest.raises(NonFiniteError) as caught:
        made(policy, step=2)
    assert str(caught.value) == (
        f"plugin 'mine': its metric 'peak' is not finite at iteration {made.ctx.iteration}, step 2"
    )


# --- Evaluating changes nothing -------------------------------------------------------------------


def test_how_often_a_run_is_evaluated_does_not_change_its_policy(tmp_path):
    weights = []
    for every in (1, 8):
        config = {
            "world": "toy",
            "iterations": 1,
            "rl": {"rollouts": 2, "rollout_size": 8, "minibatch": 8},
            "reward_model": {"updates": 2, "batch": 8},
            "prompts": {"preference": 8, "held_out": 2, "evaluation": 8},
            "evaluation": {"every": every},
        }
        made = ostinato.run(config, tmp_path / str(every))
        weights.append(
            (tmp_path / str(every) / "iteration-1/policy/model.safetensors").read_bytes()
        )
        assert sum(row["kind"] == "eval" for row in made.metrics) == (3 if every == 1 else 2)
    assert weights[0] == weights[1]


def test_gold_reads_the_prompts_of_the_file(policies, monkeypatch):
    """Not what the policy's tokenizer makes of their tokens, nor does a person."""
    asked = []

    def score(self, prompts, responses, finished):
        asked.extend(prompts)
        return torch.zeros(len(prompts))

    made, policy = evaluator(policies)
    monkeypatch.setattr(WordGold, "score", score)
    row = made(policy, 0)
    texts = [" ".join(map(str, prompt)) for prompt in PROMPTS]
    assert asked == texts
    assert [sample["prompt"] for sample in row["samples"]] == texts[: len(row["samples"])]
