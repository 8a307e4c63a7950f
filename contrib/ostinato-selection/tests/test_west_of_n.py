"""Best and worst of N against a sort in Python; a run whose pairs are further apart."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from ostinato_selection.west_of_n import WestOfN


def drawing(context, ask, n, prompts, k, seed=0):
    """A context whose policy answers 'p:i' to prompt p, with random scores."""
    texts = [f"{p}:{i}" for p in range(prompts) for i in range(n)]
    scores = np.random.default_rng(seed).normal(size=len(texts))
    config = SimpleNamespace(
        preferences=SimpleNamespace(responses=k),
        generation=SimpleNamespace(preference_top_p=0.9),
    )
    asked = []

    def sample(policy, prompts, purpose, count, top_p):
        asked.append((count, top_p))
        given = [t for t in texts if int(t.split(":")[1]) < count]
        return ask.samples(given)

    known = {text: [float(score)] for text, score in zip(texts, scores, strict=True)}
    models = (ask.votes({t: [-s for s in v] for t, v in known.items()}), ask.votes(known))
    ctx = context(seed, config=config, sample=sample, reward_models=models)
    return ctx, known, asked


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_extremes_of_each_prompt_by_the_last_reward_model(made, context, ask, k):
    ctx, known, asked = drawing(context, ask, n=6, prompts=5, k=k)
    drawn = made(WestOfN, n=6).draw_responses(None, range(5), ctx)
    assert asked == [(6, 0.9)]
    gaps = []
    for p in range(5):
        ranked = sorted((f"{p}:{i}" for i in range(6)), key=lambda text: -known[text][0])
        best, worst = ranked[: (k + 1) // 2], ranked[6 - k // 2 :]
        assert sorted(drawn.responses[p * k : p * k + k]) == sorted(best + worst)
        gaps.append(known[ranked[0]][0] - known[ranked[-1]][0])
    assert ctx.logged["west_of_n/gap"] == pytest.approx(np.mean(gaps), abs=1e-6)


def test_places_say_nothing(made, context, ask):
    ctx, known, _ = drawing(context, ask, n=4, prompts=400, k=2)
    drawn = made(WestOfN, n=4).draw_responses(None, range(400), ctx).responses
    first = [known[a][0] > known[b][0] for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    assert 160 < sum(first) < 240  # 200 +- 4 standard deviations


def test_without_a_reward_model_it_draws_what_is_compared(made, context, ask):
    ctx, _, asked = drawing(context, ask, n=6, prompts=3, k=2)
    ctx.reward_models = ()
    drawn = made(WestOfN, n=6).draw_responses(None, range(3), ctx)
    assert asked == [(2, 0.9)]
    assert drawn.responses == ["0:0", "0:1", "1:0", "1:1", "2:0", "2:1"]


def test_more_of_n_lie_further_apart_in_a_run(run):
    gaps = []
    for n in (2, 8):
        made = run([{"west_of_n": {"n": n}}], f"run-{n}", iterations=2)
        gaps += [row["west_of_n/gap"] for row in made.metrics if "west_of_n/gap" in row]
        actions = [row["actions"] for row in made.metrics if "actions" in row]
        assert max(a.get("west_of_n.draw_responses", 0) for a in actions) > 0
    assert [a < b for a, b in pairwise(gaps)] == [True]
