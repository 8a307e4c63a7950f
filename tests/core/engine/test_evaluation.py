"""Every number of an eval row against NumPy on the samples it was measured on."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import ostinato
from ostinato.config.errors import NonFiniteError
from ostinato.contract.context import Evaluation
from ostinato.data.prompts import PromptSet
from ostinato.engine import evaluation
from ostinato.engine.evaluation import Evaluator, measure_baseline, number
from ostinato.machine.backend import Backend
from ostinato.models.reward import Calibration

PROMPTS = [[2, 3], [4], [5, 2, 2], [3, 3], [2, 5], [4, 4, 4], [5], [3]]
CALIBRATION = Calibration(mean=0.0, std=1.0, gold_mean=0.7, gold_std=1.9)


class WordGold:
    """Longer responses with more of the word b are better."""

    def score(self, prompts, responses, finished):
        pairs = zip(responses, finished, strict=True)
        return torch.tensor([r.count("b") + 0.3 * len(r.split()) + 0.1 * f for r, f in pairs])


class Calibrated:
    """A fake reward with the calibration of a trained one."""

    def __init__(self, function, calibration=CALIBRATION):
        self.function = function
        self.members = [SimpleNamespace(calibration=calibration)]

    def score_samples(self, samples):
        return SimpleNamespace(score=self.function(samples))


def proxy_score(samples):
    """Float64 comes in too: rows are fp32 on the CPU whatever a reward answers."""
    return (samples.response_ids == 3).double().sum(1) + 0.5 * (samples.response_ids == 4).sum(1)


def evaluator(policies, gold=True, proxy=proxy_score, temperature=1.0):
    generation = {"max_new_tokens": 5, "temperature": temperature}
    kit = policies.make(generation=generation, gold={"model": "unused"} if gold else None)
    kit.ctx = kit.ctx.at(gold=WordGold() if gold else None)
    sft, initial, policy = (kit.word_policy(seed) for seed in (0, 1, 2))
    texts = [" ".join(map(str, p)) for p in PROMPTS]
    prompts = PromptSet(list(range(len(PROMPTS))), texts, PROMPTS)
    baseline = measure_baseline(sft, prompts, kit.ctx)
    reward = Calibrated(proxy)
    latest = Calibrated(lambda s: proxy_score(s) * 2 - s.lengths)
    made = Evaluator(
        prompts,
        baseline,
        sft,
        initial,
        reward,
        latest,
        kit.plugins,
        kit.ctx,
        Backend(kit.config.backend),
    )
    return made, policy


def drawn(made, policy, step):
    """The samples of the row, drawn again from the same generator."""
    generator = made.ctx.at(step=step).generator("evaluation")
    return evaluation.sample(policy, PROMPTS, made.ctx.config.generation, generator)


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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_number_of_a_row_equals_numpy(policies, temperature):
    made, policy = evaluator(policies, temperature=temperature)
    row = made(policy, step=3)
    samples, before = drawn(made, policy, 3), made.baseline.samples
    proxy, sft_proxy = proxy_score(samples).numpy(), proxy_score(before).numpy()
    latest = proxy * 2 - samples.lengths.numpy()

    def gold_of(of):
        return WordGold().score(of.prompts, of.responses, of.finished.tolist()).numpy()

    raw, sft_gold = gold_of(samples).astype(float), gold_of(before).astype(float)
    gold = (raw - sft_gold.mean()) / sft_gold.std(ddof=1)
    own = (proxy - sft_proxy.mean()) / sft_proxy.std(ddof=1)
    alone = [(x - x.mean()) / x.std(ddof=1) for x in (proxy, gold)]
    on_proxy_scale = (raw - CALIBRATION.gold_mean) / CALIBRATION.gold_std
    wanted = {
        "proxy_reward": proxy.mean(),
        "latest_reward": latest.mean(),
        "gold_reward": gold.mean(),
        "gap": proxy.mean() - on_proxy_scale.mean(),
        "gap_latest": latest.mean() - on_proxy_scale.mean(),
        "kl": exact_kl(policy, made.sft, samples, temperature).mean(),
        "kl_init": exact_kl(policy, made.reference, samples, temperature).mean(),
        "mmd": mmd2(own, gold),
        "mmd_batch": mmd2(*alone),
        "spearman": spearmanr(latest, gold).statistic,
        "length": samples.mask.numpy().sum(1).mean(),
        "finished": samples.finished.numpy().mean(),
    }
    texts = row.pop("samples")
    assert set(row) == set(wanted)
    for name, value in wanted.items():
        assert row[name] == pytest.approx(value, abs=2e-5), name
    assert row["kl"] > 0.1
    assert [t["response"] for t in texts] == samples.responses[:3]
    assert [t["prompt"] for t in texts] == samples.prompts[:3]
    assert [t["gold"] for t in texts] == pytest.approx(gold[:3].tolist(), abs=1e-5)
    json.dumps(row, allow_nan=False)


def test_without_gold_its_columns_are_null(policies):
    made, policy = evaluator(policies, gold=False)
    row = made(policy, step=0)
    names = ("gold_reward", "gap", "gap_latest", "mmd", "mmd_batch", "spearman")
    assert all(row[name] is None for name in names)
    assert all(text["gold"] is None for text in row["samples"])
    assert row["proxy_reward"] == pytest.approx(float(proxy_score(drawn(made, policy, 0)).mean()))


def test_a_constant_reward_has_null_spearman_and_a_row_that_json_holds(policies):
    made, policy = evaluator(policies, proxy=lambda s: torch.full((len(s),), 2.0))
    made.latest = made.reward
    row = made(policy, step=0)
    assert row["spearman"] is None
    assert row["proxy_reward"] == row["latest_reward"] == 2.0
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(("value", "wanted"), [(2, 2.0), (float("nan"), None), (-np.inf, None)])
def test_number_is_null_where_a_measure_is_undefined(value, wanted):
    assert number(value) == wanted


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
    assert float(found.gold.mean()) == pytest.approx(row["gold_reward"], abs=1e-6)
    # each side is scored as itself: the policy's sample and SFT's, the newest model's score and R_k
    sft = found.sft_samples
    assert sft is made.baseline.samples
    assert float(found.sft_gold.mean()) == pytest.approx(0.0, abs=1e-6)  # in its own units
    assert float(found.sft_gold.std()) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(found.gold_of(found.samples), found.gold)
    assert torch.equal(found.gold_of(sft), found.sft_gold)
    torch.testing.assert_close(found.proxy_of(sft), proxy_score(sft).float())
    newest = (2 * proxy_score(sft) - sft.lengths).float()
    torch.testing.assert_close(found.latest_of(sft), newest)
    assert torch.equal(found.latest_of(found.samples), found.latest)
    assert not torch.equal(found.latest, found.proxy)


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
