"""ODIN: its losses in NumPy, what it reads, and a judge that likes what is long."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ostinato_shaping.odin import ODIN

import ostinato

JUDGE = '''
import ostinato

class LikesLong:
    """Prefers the longer response, as hasty people do."""

    @ostinato.hookimpl
    def label(self, comparisons):
        longer = zip(comparisons["first_ids"][:], comparisons["second_ids"][:])
        return [0.5 + 0.45 * ((len(a) > len(b)) - (len(a) < len(b))) for a, b in longer]
'''


def batch_of(lengths, pairs):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return SimpleNamespace(
        response_mask=mask,
        pairs=torch.tensor(pairs),
        label=torch.tensor([0.9, 0.2]),
        margin=torch.tensor([0.0, 0.5]),
    )


def outputs_of(logits, head=((1.0, 0.0), (0.0, 1.0))):
    """Two views of responses' logits (2, N, 2)."""
    return SimpleNamespace(logits=torch.tensor(logits), head=torch.tensor(head))


LOGITS = [
    [[0.1, 1.0], [0.4, -2.0], [-0.3, 0.5], [0.9, 0.2]],
    [[0.2, 0.7], [0.1, -1.0], [0.3, 0.4], [-0.5, 0.6]],
]


def test_the_sum_of_both_heads_predicts_the_preference(small):
    batch = batch_of([2, 3, 1, 5], [[0, 1], [2, 3]])
    found = small.configured(ODIN).preference_loss(batch, outputs_of(LOGITS))
    reward = np.array(LOGITS).sum(-1)
    z = reward[:, [0, 2]] - reward[:, [1, 3]] - np.array([0.0, 0.5])
    p = np.array([0.9, 0.2])
    wanted = p * np.log1p(np.exp(-z)) + (1 - p) * np.log1p(np.exp(z))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_quality_is_kept_off_length_and_the_heads_apart(small):
    lengths, head = [2, 3, 1, 5], ((1.0, 2.0, 0.5), (-1.0, 0.3, 2.0))
    batch = batch_of(lengths, [[0, 1], [2, 3]])
    plugin = small.configured(ODIN, length=0.7, orthogonality=0.3)
    found = plugin.rm_loss(batch, outputs_of(LOGITS, head))
    terms = []
    for view in np.array(LOGITS):
        quality, length = (np.corrcoef(view[:, i], lengths)[0, 1] for i in (0, 1))
        terms.append(abs(quality) + 1 - length)
    a, b = np.array(head)
    cosine = abs(a @ b) / np.sqrt((a @ a) * (b @ b))
    assert float(found["length"]) == pytest.approx(0.7 * np.mean(terms), rel=1e-5)
    assert float(found["orthogonality"]) == pytest.approx(0.3 * cosine, rel=1e-5)


def test_responses_of_one_length_have_no_correlation_and_no_fault(small):
    logits = torch.zeros(1, 4, 2, requires_grad=True)
    outputs = SimpleNamespace(logits=logits, head=torch.eye(2))
    found = small.configured(ODIN).rm_loss(batch_of([3] * 4, [[0, 1], [2, 3]]), outputs)
    assert found["length"].item() == 1.0
    found["length"].backward()
    assert bool(logits.grad.isfinite().all())


def test_the_head_for_length_is_not_read():
    logits = torch.tensor([[1.0, 50.0], [2.0, -50.0]])
    found = ODIN.read(logits, torch.tensor([0.5]), {})
    assert found.score.tolist() == [0.5, 1.5]
    assert found.parts.tolist() == [[[0.5]], [[1.5]]]


@pytest.fixture
def judge(tmp_path):
    path = tmp_path / "judge.py"
    path.write_text(JUDGE)
    return f"'{path}:LikesLong'"


def test_length_goes_into_its_own_head(toy, judge):
    sizes = ("reward_model.updates=40", "prompts.preference=64", "rl.rollouts=1")
    found = {}
    for weight in (0, 1):
        listed = f"{{odin: {{length: {weight}, orthogonality: {weight}}}}}, {judge}"
        run = toy(listed, *sizes, name=f"weight-{weight}")
        found[weight] = next(row for row in run.metrics if "odin/quality_with_length" in row)
        assert "odin/length" in next(r for r in run.metrics if r["kind"] == "reward_model")["terms"]
    assert found[0]["odin/quality_with_length"] > 0.6  # as any model that believes the judge
    assert abs(found[1]["odin/quality_with_length"]) < 0.3
    assert found[1]["odin/length_with_length"] > 0.8


def test_odin_and_par_run_together(toy):
    run = toy("odin, {par: {references: 2}}, rloo", "iterations=2", "rl.rollouts=1")
    combined = [row for row in run.metrics if row.get("stage") == "combined"]
    assert len(combined) == 2
    assert all(row["actions"]["par.wrap_reward"] > 0.1 for row in combined)
    config = run.directory / "iteration-2/reward_model/config.json"
    assert '"reader": "odin"' in config.read_text()


def test_a_wrong_setting_is_one_sentence(toy):
    with pytest.raises(ostinato.UserError, match=r"plugins\.odin\.length") as caught:
        toy("{odin: {length: -1}}")
    assert "\n" not in str(caught.value)
