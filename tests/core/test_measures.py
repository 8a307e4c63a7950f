"""Measures against independent oracles: float64 NumPy loops, scipy, numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor

from ostinato import measures

Array = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def right_padded(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


# --- masked_mean, whiten --------------------------------------------------------------------------


def test_masked_mean_ignores_whatever_is_on_padding() -> None:
    x = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, -math.inf]])
    assert measures.masked_mean(x, right_padded([2, 1], 3)).item() == 3.0


def test_masked_mean_has_no_gradient_on_padding() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    mean = measures.masked_mean(x, torch.tensor([[1, 1, 0, 0]]))
    assert torch.autograd.grad(mean, x)[0].tolist() == [[0.5, 0.5, 0.0, 0.0]]


def test_masked_mean_of_nothing_is_nan() -> None:
    assert math.isnan(measures.masked_mean(torch.ones(1, 2), torch.zeros(1, 2)).item())


def test_masked_mean_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"x \(2, 3\), mask \(1, 3\)"):
        measures.masked_mean(torch.ones(2, 3), torch.ones(1, 3))


def test_whiten_matches_numpy(rng: np.random.Generator) -> None:
    x = rng.normal(3, 5, (4, 6))
    mask = right_padded([6, 1, 3, 4], 6)
    real = x[mask.numpy()]
    expected = np.where(mask.numpy(), (x - real.mean()) / np.sqrt(real.var() + 1e-8), 0)
    x[~mask.numpy()] = np.nan
    white = measures.whiten(torch.tensor(x, dtype=torch.float32), mask)
    np.testing.assert_allclose(white.numpy(), expected, atol=1e-5)


def test_whiten_by_hand() -> None:
    white = measures.whiten(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    assert white[0].tolist() == pytest.approx([-1, 1, 0])


@pytest.mark.parametrize("x", [[[7.3, 5.0]], [[math.inf, math.nan]]])
def test_whiten_of_at_most_one_token_is_zero(x: list[list[float]]) -> None:
    mask = torch.tensor([[math.isfinite(x[0][0]), False]])
    assert measures.whiten(torch.tensor(x), mask).tolist() == [[0.0, 0.0]]


# --- gae ------------------------------------------------------------------------------------------


def gae_loop(r: Array, v: Array, lengths: list[int], gamma: float, lam: float) -> Array:
    """The sum of equation 16, term by term."""
    out = np.zeros_like(r)
    for i, n in enumerate(lengths):
        for t in range(n):
            for s in range(t, n):
                after = v[i, s + 1] if s + 1 < n else 0.0
                out[i, t] += (gamma * lam) ** (s - t) * (r[i, s] + gamma * after - v[i, s])
    return out


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_gae_matches_the_sum_in_float64(rng: np.random.Generator, gamma: float, lam: float) -> None:
    lengths = [7, 1, 4, 0]
    mask = right_padded(lengths, 7)
    r, v = rng.normal(size=(2, 4, 7))
    expected = gae_loop(r, v, lengths, gamma, lam)
    r[~mask.numpy()], v[~mask.numpy()] = np.nan, np.inf
    advantages, returns = measures.gae(torch.tensor(r), torch.tensor(v), mask, gamma, lam)
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)
    both = np.where(mask.numpy(), expected + v, 0)
    np.testing.assert_allclose(returns.numpy(), both, atol=1e-12)


def test_gae_by_hand() -> None:
    r, v = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[0.5, 0.25, 5.0]])
    advantages, returns = measures.gae(r, v, torch.tensor([[1, 1, 0]]), gamma=1.0, lam=0.5)
    assert advantages.tolist() == [[-0.25 + 0.5 * 0.75, 0.75, 0.0]]
    assert returns.tolist() == [[0.625, 1.0, 0.0]]


def test_gae_with_lambda_one_is_the_return_minus_the_value(rng: np.random.Generator) -> None:
    lengths, gamma = [5, 3], 0.9
    mask = right_padded(lengths, 5)
    r, v = rng.normal(size=(2, 2, 5))
    advantages, returns = measures.gae(torch.tensor(r), torch.tensor(v), mask, gamma, 1.0)
    for i, n in enumerate(lengths):
        for t in range(n):
            monte_carlo = sum(gamma ** (s - t) * r[i, s] for s in range(t, n))
            assert returns[i, t].item() == pytest.approx(monte_carlo)
            assert advantages[i, t].item() == pytest.approx(monte_carlo - v[i, t])


def test_gae_does_not_depend_on_padding() -> None:
    r, v = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind()
    mask = right_padded([4, 2, 3], 4)
    pad = torch.full((3, 2), 9.0)
    narrow = measures.gae(r, v, mask, 1.0, 0.95)
    wide = measures.gae(
        torch.cat([r, pad], 1), torch.cat([v, pad], 1), right_padded([4, 2, 3], 6), 1.0, 0.95
    )
    for a, b in zip(narrow, wide, strict=True):
        assert torch.equal(a, b[:, :4])
        assert not b[:, 4:].any()


def test_gae_refuses_bad_input() -> None:
    x = torch.ones(1, 3)
    with pytest.raises(ValueError, match="follows padding"):
        measures.gae(x, x, torch.tensor([[0, 1, 1]]), 1.0, 0.95)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        measures.gae(x, x, x, 1.0, 1.5)
    with pytest.raises(ValueError, match="shapes differ"):
        measures.gae(x, x[:, :2], x, 1.0, 0.95)
    with pytest.raises(ValueError, match="batch, tokens"):
        measures.gae(x[0], x[0], x[0], 1.0, 0.95)


# --- KL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.2, None])
def test_clipped_surrogate_matches_the_loop(rng: np.random.Generator, clip: float | None) -> None:
    log_ratio, advantages = rng.normal(size=(2, 5, 7))
    found = measures.clipped_surrogate(torch.tensor(log_ratio), torch.tensor(advantages), clip)
    for at in np.ndindex(5, 7):
        ratio = math.exp(log_ratio[at])
        near = ratio if clip is None else min(max(ratio, 1 - clip), 1 + clip)
        wanted = min(ratio * advantages[at], near * advantages[at])
        assert found[at].item() == pytest.approx(wanted)


def test_clipped_surrogate_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        measures.clipped_surrogate(torch.ones(2, 3), torch.ones(2), 0.2)


def test_halves_are_upcast() -> None:
    even = torch.zeros(1, 1, 1000, dtype=torch.bfloat16)  # log 1000 has no bfloat16
    one = even.clone()
    one[..., 0] = 8.0
    kl = measures.exact_kl(even, one)
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(math.log((999 + math.exp(8)) / 1000) - 8 / 1000)


def test_kl_estimators_by_hand() -> None:
    logprobs, ref = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert measures.kl_k1(logprobs, ref).item() == pytest.approx(math.log(2))
    assert measures.kl_k2(logprobs, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert measures.kl_k3(logprobs, ref).item() == pytest.approx(0.5 - 1 + math.log(2))
    with pytest.raises(ValueError, match="shapes differ"):
        measures.kl_k3(logprobs, ref[0])


def test_k2_and_k3_are_never_negative_and_0_where_the_models_agree() -> None:
    logprobs = -torch.rand(200, 500, generator=torch.Generator().manual_seed(0)) * 5
    scales = torch.logspace(-9, 0.5, 200).unsqueeze(1)  # from under float32's eps upwards
    for kl in (measures.kl_k2, measures.kl_k3):
        for sign in (-1, 1):
            assert (kl(logprobs, logprobs + sign * scales) >= 0).all()
        assert not kl(logprobs, logprobs).any()


def test_exact_kl_matches_scipy_and_the_means_of_k1_and_k3() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ref = torch.randn(2, 2, 3, 6, generator=generator)
    exact = measures.exact_kl(logits, ref)
    p = special.softmax(logits.double().numpy(), axis=-1)
    q = special.softmax(ref.double().numpy(), axis=-1)
    np.testing.assert_allclose(exact.numpy(), stats.entropy(p, q, axis=-1), atol=1e-6)

    n = 20_000  # draws at each of the 2 x 3 positions, as six rows of n tokens
    tokens = torch.multinomial(torch.tensor(p).reshape(6, 6), n, True, generator=generator)
    logprobs, ref_logprobs = (
        table.reshape(6, 6).log_softmax(-1).gather(-1, tokens) for table in (logits, ref)
    )
    for kl in (measures.kl_k1, measures.kl_k3):
        sample = kl(logprobs, ref_logprobs)
        standard_error = sample.std(1) / math.sqrt(n)
        assert ((sample.mean(1) - exact.flatten()).abs() < 4 * standard_error).all()


def test_exact_kl_is_never_negative_and_0_for_equal_logits() -> None:
    logits = torch.randn(4, 8, 50, generator=torch.Generator().manual_seed(0)) * 10
    assert not measures.exact_kl(logits, logits).any()
    assert (measures.exact_kl(logits, logits + 1e-6 * logits.sin()) >= 0).all()
    assert measures.exact_kl(logits, logits + 5).max() < 1e-5  # a constant shift is no change


def test_exact_kl_with_impossible_tokens() -> None:
    policy = torch.tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
    kl = measures.exact_kl(policy, torch.zeros(1, 1, 3))
    assert kl.item() == pytest.approx(math.log(3 / 2))
    assert measures.exact_kl(policy, policy.detach()).item() == 0
    assert measures.exact_kl(torch.zeros(1, 1, 3), policy.detach()).item() == math.inf
    assert torch.autograd.grad(kl.sum(), policy)[0].isfinite().all()


def test_exact_kl_refuses_bad_shapes() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        measures.exact_kl(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="vocabulary"):
        measures.exact_kl(torch.zeros(2, 3), torch.zeros(2, 3))


# --- mmd2, standardise ----------------------------------------------------------------------------


def median_distance(x: Array, y: Array) -> float:
    pooled = [*x, *y]
    return float(np.median([abs(a - b) for i, a in enumerate(pooled) for b in pooled[:i]]))


def mmd2_loop(x: Array, y: Array) -> float:
    """Equation 3 of Gretton et al., one pair at a time."""
    bandwidth = median_distance(x, y)

    def k(a: float, b: float) -> float:
        return math.exp(-((a - b) ** 2) / (2 * bandwidth**2))

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (13, 8), (9, 12)])
def test_mmd2_matches_the_loop(rng: np.random.Generator, n: int, m: int) -> None:
    x, y = rng.normal(size=n), rng.normal(1, 2, size=m)
    got = measures.mmd2(torch.tensor(x), torch.tensor(y))
    assert got == pytest.approx(mmd2_loop(x, y), abs=1e-12)


def test_mmd2_by_hand() -> None:
    # within x: k(0, 2), within y: k(1, 1) = 1, between: k(0, 1) = k(2, 1)
    # the distances are 0, 1, 1, 1, 1, 2, so the bandwidth is 1
    expected = math.exp(-2) + 1 - 2 * math.exp(-0.5)
    assert measures.mmd2([0.0, 2.0], [1.0, 1.0]) == pytest.approx(expected)


def test_mmd2_is_unbiased(rng: np.random.Generator) -> None:
    draws = rng.normal(size=(3000, 12))
    values = np.array([measures.mmd2(d[:5].tolist(), d[5:].tolist()) for d in draws])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / math.sqrt(len(values))
    assert (values < 0).any()  # a biased estimate never is


def test_mmd2_has_its_closed_form_between_normals(rng: np.random.Generator) -> None:
    # E k(a, b) of differences a - b ~ N(mu, 2): h / sqrt(h^2 + 2) exp(-mu^2 / 2(h^2 + 2))
    x, y = rng.normal(0, 1, 1000), rng.normal(1, 1, 1000)
    h = median_distance(x, y)
    expected = 2 * h / math.sqrt(h**2 + 2) * (1 - math.exp(-1 / (2 * (h**2 + 2))))
    got = measures.mmd2(torch.tensor(x), torch.tensor(y))
    assert got == pytest.approx(expected, abs=0.03)


def test_mmd2_of_tied_samples() -> None:
    assert measures.mmd2([3.0] * 4, [3.0] * 5) == 0.0
    # 16 of the 28 distances are 0, and so is their median: the positive ones decide, all of them 2
    expected = 1 + 1 - 2 * math.exp(-0.5)
    assert measures.mmd2([0.0] * 6, [2.0] * 2) == pytest.approx(expected)


def test_mmd2_does_not_change_with_the_scale_under_the_median_heuristic() -> None:
    x, y = [0.1, 0.9, 2.0], [0.5, 3.0, 7.0, 1.0]
    scaled = measures.mmd2([1e6 * v + 5 for v in x], [1e6 * v + 5 for v in y])
    assert scaled == pytest.approx(measures.mmd2(x, y), rel=1e-9)


def test_mmd2_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="at least two"):
        measures.mmd2([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="y holds a value that is not finite"):
        measures.mmd2([1.0, 2.0], [1.0, math.nan])
    with pytest.raises(ValueError, match="one dimension"):
        measures.mmd2(torch.ones(2, 2), torch.ones(2))


def test_standardise() -> None:
    assert measures.standardise(torch.tensor([1.0, 5.0]), 3.0, 2.0).tolist() == [-1.0, 1.0]
    x = torch.tensor([0.3, -1.0, 2.5])
    z = 4 * x - 7  # an affine copy is the same after standardising each on its own sample
    torch.testing.assert_close(
        measures.standardise(x, x.mean().item(), x.std().item()),
        measures.standardise(z, z.mean().item(), z.std().item()),
    )
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="cannot standardise"):
            measures.standardise(x, 0.0, std)


# --- spearman, pairwise_accuracy ------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1000, 4])
def test_spearman_matches_scipy(rng: np.random.Generator, levels: int) -> None:
    for _ in range(20):
        x = rng.integers(0, levels, 30).astype(float)
        y = np.floor(x / 2) + rng.integers(0, levels, 30)
        expected = stats.spearmanr(x, y).statistic
        assert measures.spearman(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)


def test_spearman_at_its_bounds() -> None:
    assert measures.spearman([1.0, 2.0, 9.0], [0.0, 0.1, 50.0]) == 1.0
    assert measures.spearman([1.0, 2.0, 9.0], [3.0, 2.0, 1.0]) == -1.0
    assert math.isnan(measures.spearman([1.0, 1.0], [1.0, 2.0]))
    with pytest.raises(ValueError, match="at least two"):
        measures.spearman([1.0], [1.0])
    with pytest.raises(ValueError, match="shapes differ"):
        measures.spearman([1.0, 2.0], [1.0, 2.0, 3.0])


def test_pairwise_accuracy_by_hand() -> None:
    # right, wrong, tied by the scores (one half), tied by gold (left out)
    score_a, score_b = [2.0, 0.0, 1.0, 5.0], [1.0, 3.0, 1.0, 0.0]
    gold_a, gold_b = [1.0, 1.0, 0.0, 4.0], [0.0, 0.0, 1.0, 4.0]
    assert measures.pairwise_accuracy(score_a, score_b, gold_a, gold_b) == 0.5
    assert measures.pairwise_accuracy(gold_a, gold_b, gold_a, gold_b) == 1.0
    assert measures.pairwise_accuracy(gold_b, gold_a, gold_a, gold_b) == 0.0
    assert math.isnan(measures.pairwise_accuracy([1.0], [0.0], [2.0], [2.0]))
    with pytest.raises(ValueError, match="shapes differ"):
        measures.pairwise_accuracy([1.0], [1.0], [1.0], [1.0, 2.0])


# --- gao_fit -------------------------------------------------------------------------------------


def test_gao_fit_recovers_the_curve_and_its_peak(rng: np.random.Generator) -> None:
    alpha, beta = 1.3, 0.45

    def curve(d: Array) -> Array:
        return d * (alpha - beta * np.log(d))

    kl = rng.uniform(0.01, 30, 40)
    d = np.sqrt(kl)
    exact = measures.gao_fit(torch.tensor(kl), torch.tensor(curve(d)))
    assert (exact.alpha, exact.beta) == pytest.approx((alpha, beta))
    assert [exact.height(x) for x in (0.0, *kl)] == pytest.approx([0.0, *curve(d)])
    grid = np.linspace(1e-3, 20, 400_001)
    highest = grid[curve(grid).argmax()]
    assert exact.peak == (
        pytest.approx(highest**2, abs=1e-2),
        pytest.approx(curve(highest)),
    )

    gold = curve(d) + rng.normal(0, 0.3, 40)  # with noise: numpy's least squares
    design = np.stack([d, -d * np.log(d)], 1)
    expected = np.linalg.lstsq(design, gold, rcond=None)[0]
    noisy = measures.gao_fit(kl.tolist(), gold.tolist())
    assert (noisy.alpha, noisy.beta) == pytest.approx(tuple(expected))


def test_gao_fit_by_hand_with_the_point_at_the_start() -> None:
    fit = measures.gao_fit([0.0, 1.0, 4.0], [0.0, 1.0, 1.0])  # 0 log 0 = 0
    assert fit.alpha == pytest.approx(1.0)  # log 1 = 0
    assert fit.beta == pytest.approx(0.5 / math.log(2))


def test_gao_fit_without_a_peak() -> None:
    rising = measures.gao_fit([1.0, 4.0, 9.0], [1.0, 4.0, 9.0])  # gold = d^2
    assert rising.beta < 0
    assert rising.peak is None
    straight = measures.gao_fit([1.0, 4.0], [1.0, 2.0 - 1e-12])  # peak beyond any float
    assert straight.beta > 0
    assert straight.peak is None
    assert measures.GaoFit(600.0, 1.0).peak is None  # its d is a float, its KL is not


def test_gao_fit_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="KL >= 0"):
        measures.gao_fit([-0.1, 1.0, 2.0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="two different"):
        measures.gao_fit([0.0, 1.0, 1.0], [0.0, 1.0, 2.0])


# --- Who wins, and the calibrated temperature -----------------------------------------------------


def test_wins_by_hand():
    same = torch.tensor([False, False, False, True])
    found = measures.wins([2.0, 1.0, 1.0, 5.0], [1.0, 1.0, 3.0, 1.0], same)
    assert found.tolist() == [1.0, 0.5, 0.0, 0.5]
    mean, error = measures.mean_and_error(found)
    assert (mean, error) == (0.5, pytest.approx(np.std([1, 0.5, 0, 0.5], ddof=1) / 2))
    assert measures.mean_and_error(found[:1]) == (1.0, 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e12])
def test_mean_and_std_know_noise_from_spread(scale):
    x = np.array([1.0, 2.0, 4.0]) * scale
    assert measures.mean_and_std(x.tolist()) == pytest.approx((x.mean(), x.std(ddof=1)))
    assert measures.mean_and_std([3.0, 3.0 + 1e-7])[1] is None
    assert measures.mean_and_std([3.0])[1] is None
    assert measures.mean_and_std([0.0, 0.0])[1] is None
    with pytest.raises(ValueError, match="needs a value"):
        measures.mean_and_std([])


def test_temperature_is_the_scale_that_drew_the_labels():
    """Labels drawn at T = 3: found again, within what ten thousand comparisons tell."""
    rng = np.random.default_rng(0)
    d = rng.normal(0, 4, 10_000)
    d = np.where(rng.random(10_000) < 1 / (1 + np.exp(-d / 3)), d, -d)  # chosen minus rejected
    assert measures.temperature(d.tolist(), [1.0] * 10_000) == pytest.approx(3, rel=0.05)
    assert measures.temperature((10 * d).tolist(), [1.0] * 10_000) == pytest.approx(30, rel=0.05)


def test_temperature_of_a_perfect_and_of_a_useless_model():
    perfect = measures.temperature([1.0, 2.0, 0.5], [1.0, 1.0, 1.0])
    assert 0 < perfect < measures.temperature([1.0, 2.0, 0.5, -0.5], [1.0] * 4) < np.inf
    assert measures.temperature([1.0, -1.0], [1.0, 1.0]) == np.inf
    assert measures.temperature([-1.0, -2.0], [1.0, 1.0]) == np.inf
