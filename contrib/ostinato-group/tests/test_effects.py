"""What each paper says that its loss is for, on cases small enough to be enumerated."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from ostinato_group.cispo import CISPO
from ostinato_group.dapo import DAPO
from ostinato_group.dr_grpo import DrGRPO
from ostinato_group.gspo import GSPO

# Responses of a policy over two tokens, "go" (0) and "stop" (1), cut after three.
RESPONSES = [(1,), (0, 1), (0, 0, 1), (0, 0, 0)]
REWARD = [1.0, 0.0, 0.5, 3.0]
LOGITS = torch.tensor([0.3, -0.4, 0.7], dtype=torch.float64)  # of "go" at each place


def token_logprobs(logits):
    """Log-probabilities of each response's tokens, a list of tensors."""
    go, stop = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    both = torch.stack([go, stop], dim=1)
    return [torch.stack([both[t, y] for t, y in enumerate(r)]) for r in RESPONSES]


def expected_gradient(algorithm, rollout, ctx, reward=REWARD):
    """Minus the mean gradient of the loss over all groups of two, by their probabilities."""
    total = torch.zeros(3, dtype=torch.float64)
    chance = [float(rows.sum().exp()) for rows in token_logprobs(LOGITS)]
    for group in product(range(4), repeat=2):
        logits = LOGITS.clone().requires_grad_()
        rows = [token_logprobs(logits)[i] for i in group]
        old = [row.tolist() for row in rows]
        batch = rollout(old, [reward[i] for i in group], [0, 0])
        batch = replace(batch, advantages=algorithm.advantages(batch, ctx)[0])
        new = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        found = algorithm.loss(batch, _Outputs(new), ctx)["policy"]
        (gradient,) = torch.autograd.grad(found, logits)
        total -= chance[group[0]] * chance[group[1]] * gradient
    return total.numpy()


class _Outputs:
    def __init__(self, logprobs):
        self.logprobs = logprobs


def true_gradient():
    """Of the expected reward, by central differences in NumPy."""

    def value(logits):
        go = 1 / (1 + np.exp(-logits))
        chance = [
            np.prod([go[t] if y == 0 else 1 - go[t] for t, y in enumerate(r)]) for r in RESPONSES
        ]
        return float(np.dot(chance, REWARD))

    start, step = LOGITS.numpy(), 1e-5
    axes = np.eye(3) * step
    return np.array([(value(start + e) - value(start - e)) / (2 * step) for e in axes])


def angle(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_dr_grpo_is_unbiased_and_a_division_by_length_is_not(plugin, rollout, ctx):
    found = expected_gradient(plugin(DrGRPO, responses=2), rollout, ctx)
    half = true_gradient() / 2  # (G - 1) / G
    assert found * 10 == pytest.approx(half, abs=1e-9)  # L is 10

    class Divided(DrGRPO):
        def mean(self, x, mask, ctx):
            return (x.sum(1) / mask.sum(1)).mean()

    biased = expected_gradient(plugin(Divided, responses=2), rollout, ctx)
    assert angle(biased, half) < 0.99


def test_dr_grpo_weighs_a_prompt_by_how_far_its_rewards_lie_apart(plugin, rollout, ctx):
    """GRPO's division by the deviation makes a hundredth of the spread count as the whole."""
    near = [r / 100 for r in REWARD]
    for made, ratio in ((DrGRPO, 0.01), (DAPO, 1.0)):
        algorithm = plugin(made, responses=2)
        wide = expected_gradient(algorithm, rollout, ctx)
        narrow = expected_gradient(algorithm, rollout, ctx, near)
        assert np.linalg.norm(narrow) / np.linalg.norm(wide) == pytest.approx(ratio, rel=0.05)


def gradients(algorithm, rollout, outputs, ctx, new):
    """Of each token's log-probability, up to the sign; the first response is the better one."""
    batch = rollout([[-1.0] * len(row) for row in new], [1.0, 0.0], [0, 0])
    batch = replace(batch, advantages=algorithm.advantages(batch, ctx)[0])
    found = outputs(new)
    algorithm.loss(batch, found, ctx)["policy"].backward()
    return -found.logprobs.grad


def test_dapo_lets_an_unlikely_token_rise_further(plugin, rollout, outputs, ctx):
    """A good token at 1.25 times its old probability still has a gradient; at 1.29 none."""
    algorithm = plugin(DAPO, responses=2)
    for ratio, alive in ((1.25, True), (1.29, False)):
        new = [[-1.0 + math.log(ratio)], [-1.0]]
        found = gradients(algorithm, rollout, outputs, ctx, new)
        assert bool(found[0, 0] > 0) is alive
    new = [[-1.0], [-1.0 + math.log(0.79)]]  # a bad token stops falling where it always did
    assert gradients(algorithm, rollout, outputs, ctx, new)[1, 0] == 0


def test_gspo_weighs_the_tokens_of_a_response_alike(plugin, rollout, outputs, ctx):
    """Ratios of 3 and 1/3 cancel in the response; taken by tokens, one is clipped away."""
    new = [[-1.0 + math.log(3), -1.0 - math.log(3)], [-1.0, -1.0]]
    found = gradients(plugin(GSPO, responses=2), rollout, outputs, ctx, new)[0]
    assert found[0].item() == pytest.approx(found[1].item())
    assert found[0] > 0
    by_token = gradients(plugin(DAPO, responses=2), rollout, outputs, ctx, new)[0]
    assert by_token[0] == 0
    assert by_token[1] > 0


def test_cispo_keeps_the_gradient_of_every_token(plugin, rollout, outputs, ctx):
    """Where PPO's clip drops a token, CISPO keeps it at the largest weight."""
    new = [[-1.0 + math.log(9.0), -1.0 + math.log(1.1)], [-1.0 - math.log(9.0), -1.0]]
    weights = gradients(plugin(CISPO, responses=2), rollout, outputs, ctx, new)
    a = math.sqrt(0.5) / (math.sqrt(0.5) + 1e-4) * math.sqrt(0.5)  # (1 - 0.5) / std
    wanted = [[5 * a, 1.1 * a], [-a / 9, -a]]  # 1 + 4 is the largest weight
    assert weights.mul(4).tolist() == [pytest.approx(row) for row in wanted]
    assert gradients(plugin(DAPO, responses=2), rollout, outputs, ctx, new)[0, 0] == 0
    bounded = plugin(CISPO, responses=2, clip_low=0.5)
    found = gradients(bounded, rollout, outputs, ctx, new)
    assert found[1, 0].item() * 4 == pytest.approx(-0.5 * a)
