"""Rejection sampling: both selections, and the likelihood of what is selected."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato.config.errors import UserError
from rollout_kit import (
    SENTENCES,
    algorithm,
    logprobs,
    parameters,
    random_rollout,
    sentence_rollout,
    terms,
    total,
    with_advantages,
)

# The Book's example, section 10.2.2.3: 5 prompts, 4 completions.
BOOK = [
    [0.7, 0.3, 0.5, 0.2],
    [0.4, 0.8, 0.6, 0.5],
    [0.9, 0.3, 0.4, 0.7],
    [0.2, 0.5, 0.8, 0.6],
    [0.5, 0.4, 0.3, 0.6],
]


def book():
    drawn = [SENTENCES[i % len(SENTENCES)] for i in range(20)]
    rollout = sentence_rollout(drawn, parameters(0), parameters(1), lambda s: 0.0, 0.1, 4)
    rollout.score = torch.tensor(BOOK, dtype=torch.float64).flatten()
    return rollout


def kept(made, rollout):
    return made.filter_rollout(with_advantages(made, rollout)).tolist()


def test_the_books_example_per_prompt():
    found = kept(algorithm("rejection_sampling", responses=4), book())
    assert found == [0, 5, 8, 14, 19]


@pytest.mark.parametrize("top", [5, 0.25, None])
def test_the_books_example_overall(top):
    settings = {} if top is None else {"top": top}
    made = algorithm("rejection_sampling", responses=4, select="overall", **settings)
    assert kept(made, book()) == [0, 5, 8, 11, 14]  # the two of .7 are prompt 1's and prompt 3's


@pytest.mark.parametrize(("top", "count"), [(1, 1), (1.0, 20), (0.01, 1), (99, 20), (0.3, 6)])
def test_top_is_a_number_or_a_share(top, count):
    made = algorithm("rejection_sampling", responses=4, select="overall", top=top)
    assert len(kept(made, book())) == count


@pytest.mark.parametrize("responses", [2, 3])
@pytest.mark.parametrize("select", ["per_prompt", "overall"])
def test_selection_whatever_the_order_of_rows(responses, select):
    made = algorithm("rejection_sampling", responses=responses, select=select)
    for seed in range(5):
        rollout, _ = random_rollout(seed, responses)
        scores, group = rollout.score.numpy(), rollout.group.numpy()
        if select == "per_prompt":
            wanted = [np.where(group == g, scores, -np.inf).argmax() for g in np.unique(group)]
        else:
            wanted = np.argsort(scores)[-len(scores) // responses :]
        assert kept(made, rollout) == sorted(wanted)
        found = made.advantages(rollout, None)[0]
        assert torch.equal(found > 0, rollout.mask & (found.any(1)[:, None]))


def test_of_equal_scores_the_first_is_taken():
    rollout = book()
    rollout.score = torch.zeros_like(rollout.score)
    made = algorithm("rejection_sampling", responses=4)
    assert kept(made, rollout) == [0, 4, 8, 12, 16]
    made = algorithm("rejection_sampling", responses=4, select="overall")
    assert kept(made, rollout) == [0, 1, 2, 3, 4]


def test_the_kl_plays_no_part_in_the_ranking():
    made, rollout = algorithm("rejection_sampling", responses=4), book()
    rollout.rewards = -100 * rollout.score[:, None].expand(-1, 2)  # as a huge penalty would
    rollout.kl_coefficient = torch.full_like(rollout.kl_coefficient, 1e3)
    assert kept(made, rollout) == [0, 5, 8, 14, 19]
    assert made.kl_in_reward is False


def test_loss_is_the_negative_log_likelihood_over_real_tokens():
    made = algorithm("rejection_sampling", responses=2)
    rollout, new = random_rollout(2, 2)
    new = new.requires_grad_()
    found = terms(made, rollout, new)
    real = [new[i, j].item() for i, j in np.argwhere(rollout.mask.numpy())]
    assert found["nll"].item() == pytest.approx(-np.mean(real), rel=1e-9)
    total(found).backward()
    torch.testing.assert_close(new.grad, -rollout.mask.double() / rollout.mask.sum())


def test_what_it_fits_is_the_best_of_n_distribution():
    """Its effect: what is kept is distributed as the best of N of the policy that sampled."""
    n, sampler = 2, parameters(0)

    def score(sentence):
        return 3.0 * sentence[0] + sentence[1]

    drawn = [(a, b) for a in SENTENCES for b in SENTENCES]
    flat = [sentence for pair in drawn for sentence in pair]
    made = algorithm("rejection_sampling", responses=n)
    rollout = with_advantages(made, sentence_rollout(flat, sampler, sampler, score, 0.0, n))
    rows = made.filter_rollout(rollout)
    chance = rollout.logprobs.sum(1).view(-1, n).sum(1).exp()  # of each pair
    best = torch.zeros(len(SENTENCES), dtype=torch.float64)
    for row, weight in zip(rows.tolist(), chance, strict=True):
        best[SENTENCES.index(flat[row])] += weight
    # by hand: the chance that the better of two is this one, from the distribution's own steps
    p = logprobs(sampler, SENTENCES).sum(1).exp()
    below = p.cumsum(0)  # SENTENCES rise in score
    torch.testing.assert_close(best, below**2 - (below - p) ** 2)
    assert float((best * torch.tensor([score(s) for s in SENTENCES])).sum()) > 1.1 * float(
        (p * torch.tensor([score(s) for s in SENTENCES])).sum()
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"responses": 1}, r"\.responses: "),
        ({"select": "best"}, r"\.select: "),
        ({"select": "overall", "top": 0}, r"\.top"),
        ({"select": "overall", "top": 1.5}, r"\.top: a share should be at most 1\.0, got 1\.5"),
        ({"top": 3}, ": top goes with select: overall; per_prompt keeps one a prompt"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_a_sentence(settings, said):
    with pytest.raises(UserError, match=rf"^test: plugins\.rejection_sampling{said}") as caught:
        algorithm("rejection_sampling", **settings)
    assert "\n" not in str(caught.value)
