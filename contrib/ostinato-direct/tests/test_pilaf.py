"""PILAF: the distributions, the order of what is drawn, and why pairs are drawn so."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_direct.pilaf import PILAF, away

import ostinato


@pytest.mark.parametrize("beta", [0.1, -0.1, 0.7, -1.0])
def test_a_distribution_away_from_the_policy(beta):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3, 5))
    found = away(torch.tensor(a), torch.tensor(b), beta).softmax(-1).numpy()
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    wanted = p * (p / q) ** beta
    assert found == pytest.approx(wanted / wanted.sum(-1, keepdims=True))


@pytest.mark.parametrize(("k", "kinds"), [(2, "ud"), (3, "udu"), (4, "udud")])
def test_responses_stand_side_by_side_in_the_order_of_the_prompts(plugin, samples, k, kinds):
    """Each response tells its prompt, which side of the policy it is from, and its number."""
    count, asked = 12, []
    tokens = [[10 + i] for i in range(count)]
    prompts = ostinato.PromptSet(list(range(count)), [f"p{i}" for i in range(count)], tokens)

    def sample(policy, some, purpose, number, top_p, shape=None, reference=None):
        beta = shape.keywords["beta"] if shape else 0.0
        asked.append((beta, reference, top_p))
        side = {0.3: 1, -0.3: 2, 0.0: 3}[beta]
        rows = [[prompt, side, n] for (prompt,) in some.tokens for n in range(number)]
        drawn = samples(rows)
        texts = [text for text in some.texts for _ in range(number)]
        ids = torch.tensor([[row[0]] for row in rows])
        logprobs = torch.zeros(len(rows), 3) if shape else None
        return ostinato.Samples(
            drawn.tokenizer, ids, drawn.prompt_mask, drawn.response_ids, drawn.mask, drawn.finished,
            texts, logprobs,
        )  # fmt: skip

    logged = {}
    config = SimpleNamespace(
        preferences=SimpleNamespace(responses=k), generation=SimpleNamespace(preference_top_p=0.9)
    )
    ctx = SimpleNamespace(config=config, sample=sample, log=logged.update)
    ctx.generator = lambda purpose: torch.Generator().manual_seed(3)
    ctx.sft = SimpleNamespace(load=lambda: "sft")
    policy = SimpleNamespace(lm=SimpleNamespace(device="cpu"))
    found = plugin(PILAF, beta=0.3).draw_responses(policy, prompts, ctx)
    rows = found.tokens[1]
    assert [row[0] for row in rows] == [10 + i for i in range(count) for _ in range(k)]
    assert found.prompts == [f"p{i}" for i in range(count) for _ in range(k)]
    seen = ["".join(" udp"[row[1]] for row in rows[i : i + k]) for i in range(0, count * k, k)]
    assert set(seen) == {kinds, "p" * k}
    assert len({tuple(row) for row in rows}) == count * k  # none twice
    assert logged["pilaf/share"] == pytest.approx(seen.count(kinds) / count)
    assert asked == [(0.0, None, 0.9), (0.3, "sft", 0.9), (-0.3, "sft", 0.9)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_preference_gradient_follows_that_of_the_regularised_reward():
    """Four responses, all pairs enumerated; the policy is a table, the oracle a reward of its own.

    DPO's implicit reward is β log π/π_ref. On pairs of the policy's own its gradient is bent by the
    slope of the sigmoid, which is small where the implicit rewards lie far apart.
    """
    beta = 1.0
    rng = np.random.default_rng(2)
    logits, ref = rng.normal(size=4) * 2, rng.normal(size=4)
    policy, ref = (np.exp(x) / np.exp(x).sum() for x in (logits, ref))
    implicit = beta * np.log(policy / ref)
    oracle = implicit + rng.normal(size=4) * 0.05
    slope = np.eye(4) - policy  # of log π(y) by the logits

    value = oracle - implicit  # of J = E r - β KL, the part that moves with y
    wanted = (policy * (value - policy @ value)) @ slope

    def gradient(pairs):
        """Minus that of the DPO loss, expected over pairs (4, 4) and the oracle's labels."""
        total = np.zeros(4)
        for i in range(4):
            for j in range(4):
                gap = sigmoid(oracle[i] - oracle[j]) - sigmoid(implicit[i] - implicit[j])
                total += pairs[i, j] * gap * (slope[i] - slope[j])
        return total

    def angle(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    two = [torch.tensor(np.log(x))[None] for x in (policy, ref)]
    up, down = (away(*two, sign * beta)[0].softmax(0).numpy() for sign in (1, -1))
    own = np.outer(policy, policy)
    pilaf = (own + (np.outer(up, down) + np.outer(down, up)) / 2) / 2
    assert angle(gradient(pilaf), wanted) > angle(gradient(own), wanted)
    assert 1 - angle(gradient(pilaf), wanted) < (1 - angle(gradient(own), wanted)) / 2
