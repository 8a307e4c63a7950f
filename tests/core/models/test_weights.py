"""Weights against float64 NumPy, numbers worked by hand, and the properties they are used for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato.models import weights

State = dict[str, Tensor]


def make_state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "body.weight": torch.randn(4, 3, generator=generator).to(dtype),
        "body.bias": torch.randn(3, generator=generator).to(dtype),
        "scale": torch.randn((), generator=generator).to(dtype),
        "position_ids": torch.arange(5) + seed,
    }


def slerp_numpy(d1: NDArray[np.float64], d2: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """SLERP by rotation in the plane of d1 and d2, norms interpolated as the formula implies."""
    cos = (d1 * d2).sum() / math.sqrt((d1**2).sum() * (d2**2).sum())
    angle = math.acos(cos)
    first, second = math.sin((1 - t) * angle), math.sin(t * angle)
    result: NDArray[np.float64] = (first * d1 + second * d2) / math.sin(angle)
    return result


# --- What holds for all three ---------------------------------------------------------------------

MERGES: list[Callable[[State, State, State], State]] = [
    lambda a, b, c: weights.average([a, b, c]),
    lambda a, b, c: weights.lerp(a, b, 0.3),
    lambda a, b, c: weights.slerp(a, b, c, 0.3),
]
every_merge = pytest.mark.parametrize("merge", MERGES, ids=["average", "lerp", "slerp"])


@every_merge
def test_inputs_are_neither_changed_nor_shared(merge: Callable[..., State]) -> None:
    states = [make_state(i) for i in range(3)]
    merged = merge(*states)
    for value in merged.values():
        value.fill_(77)
    for i, state in enumerate(states):
        for key, value in make_state(i).items():
            assert torch.equal(state[key], value)


@every_merge
def test_keys_order_and_dtypes_are_those_of_the_first(merge: Callable[..., State]) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        first = make_state(0, dtype)
        merged = merge(first, make_state(1, dtype), make_state(2, dtype))
        assert list(merged) == list(first)
        assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in first.items()}
        assert torch.equal(merged["position_ids"], first["position_ids"])


@every_merge
def test_no_gradient_is_recorded(merge: Callable[..., State]) -> None:
    states = [{"w": torch.nn.Parameter(torch.randn(3))} for _ in range(3)]
    assert not merge(*states)["w"].requires_grad


@every_merge
def test_the_first_key_that_differs_is_named(merge: Callable[..., State]) -> None:
    a, b, c = (make_state(i) for i in range(3))
    short = {key: value for key, value in b.items() if key != "body.bias"}
    with pytest.raises(ValueError, match=r"'body\.bias' is missing"):
        merge(a, short, c)
    with pytest.raises(ValueError, match="'head' is missing"):
        merge(a, b | {"head": torch.ones(1)}, c)
    both = b | {"body.bias": torch.ones(3, 1), "scale": torch.ones(2)}
    with pytest.raises(ValueError, match=r"'body\.bias' has shapes \(3,\) and \(3, 1\)"):
        merge(a, both, c)
    with pytest.raises(ValueError, match=r"'position_ids' has dtypes torch\.int64 and"):
        merge(a, b | {"position_ids": torch.ones(5)}, c)


# --- average, lerp --------------------------------------------------------------------------------


def test_average_matches_numpy() -> None:
    states = [make_state(i) for i in range(5)]
    merged = weights.average(states)
    for key in ("body.weight", "body.bias", "scale"):
        expected = np.mean([state[key].double().numpy() for state in states], axis=0)
        np.testing.assert_allclose(merged[key].numpy(), expected, rtol=1e-5, atol=1e-7)


def test_average_of_one_is_a_copy_and_of_none_an_error() -> None:
    state = make_state(0)
    merged = weights.average([state])
    assert all(torch.equal(merged[key], state[key]) for key in state)
    with pytest.raises(ValueError, match="no states"):
        weights.average([])


def test_average_of_linear_models_is_their_ensemble() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(9))
    states = [make_state(i) for i in range(3)]
    outputs = [x @ s["body.weight"] + s["body.bias"] for s in states]
    merged = weights.average(states)
    got = x @ merged["body.weight"] + merged["body.bias"]
    torch.testing.assert_close(got, torch.stack(outputs).mean(0))


def test_halves_are_computed_in_float32() -> None:
    # In bfloat16 256 + 1 is 256, so a running sum of 256, 1, 1, 1, ... would never grow.
    states = [{"w": torch.tensor([v], dtype=torch.bfloat16)} for v in [256.0] + [1.0] * 255]
    assert weights.average(states)["w"].item() == 2.0  # (256 + 255) / 256, rounded
    # In float16 the sum overflows.
    large = [{"w": torch.tensor([60000.0], dtype=torch.float16)}] * 3
    assert weights.average(large)["w"].item() == 60000.0


def test_lerp_by_hand_and_at_its_ends() -> None:
    a, b = make_state(0), make_state(1)
    for t in (0.0, 0.3, 1.0, 1.5):
        merged = weights.lerp(a, b, t)
        for key in ("body.weight", "scale"):
            expected = (1 - t) * a[key].double() + t * b[key].double()
            torch.testing.assert_close(merged[key].double(), expected, rtol=1e-5, atol=1e-6)
    floats = ("body.weight", "body.bias", "scale")
    assert all(torch.equal(weights.lerp(a, b, 0.0)[key], a[key]) for key in floats)
    assert all(torch.equal(weights.lerp(a, b, 1.0)[key], b[key]) for key in floats)
    half = weights.lerp({"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}, 0.25)
    assert half["w"].item() == 2.0


# --- slerp ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_matches_numpy_tensor_by_tensor(t: float) -> None:
    base, a, b = (make_state(i) for i in range(3))
    merged = weights.slerp(base, a, b, t)
    for key in ("body.weight", "body.bias"):
        origin, x, y = (state[key].double().numpy() for state in (base, a, b))
        expected = origin + slerp_numpy(x - origin, y - origin, t)
        np.testing.assert_allclose(merged[key].numpy(), expected, atol=1e-5)


def test_slerp_by_hand() -> None:
    # A right angle between vectors of length 2, seen from (1, 1).
    base = {"w": torch.tensor([1.0, 1.0])}
    a, b = {"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 3.0])}
    root = math.sqrt(2)
    assert weights.slerp(base, a, b, 0.5)["w"].tolist() == pytest.approx([1 + root, 1 + root])
    third = weights.slerp(base, a, b, 1 / 3)["w"].tolist()
    assert third == pytest.approx([1 + 2 * math.cos(math.pi / 6), 1 + 2 * math.sin(math.pi / 6)])


def test_slerp_keeps_the_norm_where_averaging_shrinks_it() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2000, generator=generator)
    d1, d2 = torch.randn(2, 2000, generator=generator)
    d1, d2 = 0.1 * d1 / d1.norm(), 0.1 * d2 / d2.norm()  # almost at a right angle
    states = [{"w": base}, {"w": base + d1}, {"w": base + d2}]
    for t in (0.2, 0.5, 0.8):
        moved = weights.slerp(states[0], states[1], states[2], t)["w"] - base
        assert moved.norm().item() == pytest.approx(0.1, rel=1e-3)
    averaged = weights.average(states[1:])["w"] - base
    assert averaged.norm().item() == pytest.approx(0.1 / math.sqrt(2), rel=0.05)


def test_slerp_is_linear_where_it_has_no_plane() -> None:
    base = {"w": torch.zeros(3)}
    d = torch.tensor([1.0, 2.0, 2.0])
    cases = {
        "equal": (d, d, 0.25, d),
        "parallel": (d, 3 * d, 0.25, 1.5 * d),
        "opposite": (d, -d, 0.25, 0.5 * d),
        "first is zero": (torch.zeros(3), d, 0.25, 0.25 * d),
        "second is zero": (d, torch.zeros(3), 0.25, 0.75 * d),
        "both are zero": (torch.zeros(3), torch.zeros(3), 0.25, torch.zeros(3)),
    }
    for name, (x, y, t, expected) in cases.items():
        merged = weights.slerp(base, {"w": x}, {"w": y}, t)["w"]
        torch.testing.assert_close(merged, expected, msg=name)


@pytest.mark.parametrize("angle", [3e-5, 0.99e-4, 1.01e-4, 1e-3, 0.02, 3.0])
def test_slerp_does_not_jump_where_it_becomes_linear(angle: float) -> None:
    base = {"w": torch.zeros(2)}
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    merged = weights.slerp(base, {"w": a}, {"w": b}, 0.3)["w"]
    expected = torch.tensor([math.cos(0.3 * angle), math.sin(0.3 * angle)])
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-7)


def test_slerp_is_symmetric() -> None:
    base, a, b = (make_state(i) for i in range(3))
    one, other = weights.slerp(base, a, b, 0.3), weights.slerp(base, b, a, 0.7)
    for key in ("body.weight", "body.bias", "scale"):
        torch.testing.assert_close(one[key], other[key])


# --- slerp_all, follow, distance ------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_slerp_all_takes_in_the_m_th_state_at_one_mth(count: int) -> None:
    base, *states = (make_state(i) for i in range(count + 1))
    merged = weights.slerp_all(base, states)
    for key in ("body.weight", "body.bias"):
        origin, *points = (state[key].double().numpy() for state in (base, *states))
        wanted = points[0] - origin
        for m in range(2, count + 1):
            wanted = slerp_numpy(wanted, points[m - 1] - origin, 1 / m)
        np.testing.assert_allclose(merged[key].numpy(), origin + wanted, atol=1e-5)
    assert merged["body.weight"].data_ptr() != states[0]["body.weight"].data_ptr()


def test_slerp_all_of_three_at_right_angles_by_hand() -> None:
    base = {"w": torch.zeros(3)}
    states = [{"w": row} for row in 2 * torch.eye(3)]
    # halfway between the first two, then a third of the way to the last
    found = weights.slerp_all(base, states)["w"].tolist()
    flat = 2 * math.cos(math.pi / 6) / math.sqrt(2)
    assert found == pytest.approx([flat, flat, 2 * math.sin(math.pi / 6)])
    with pytest.raises(ValueError, match="no states"):
        weights.slerp_all(base, [])


def test_follow_moves_the_anchor_alone_and_passes_over_what_it_lacks() -> None:
    anchor = torch.nn.ModuleDict({"body": torch.nn.Linear(3, 2)})
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(2, 1), "body": torch.nn.Linear(3, 2)})
    start = [p.detach().double().clone() for p in anchor.parameters()]
    end = [p.detach().double().clone() for p in model["body"].parameters()]
    for n in range(1, 6):
        weights.follow(anchor, model, 0.3)
        kept = 0.7**n  # of the start, in closed form
        for p, a, b in zip(anchor.parameters(), start, end, strict=True):
            torch.testing.assert_close(p.detach().double(), kept * a + (1 - kept) * b)
    for p, b in zip(model["body"].parameters(), end, strict=True):
        assert torch.equal(p.detach().double(), b)


def test_distance_is_over_all_parameters_together() -> None:
    a, b = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    with torch.no_grad():
        a.weight.zero_(), a.bias.fill_(1.0)
        b.weight.copy_(torch.tensor([[2.0, 4.0]])), b.bias.fill_(5.0)
    assert weights.distance(a, b) == pytest.approx(6.0)
    assert weights.distance(a, a) == 0.0
