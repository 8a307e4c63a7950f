"""Rewards: what a plugin's own may answer, combinations, and what is laid around one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ostinato import NonFiniteError, Reward, Scores, UserError, combine, wrapped
from ostinato.config.draws import Draws
from ostinato.models.reward import Calibration
from ostinato.models.reward_model import MEAN, Reader, RewardModel, read_mean
from text_samples import scored, text_samples

TEXTS = ["x", "yz", "zzxy"], ["ab", "c", "dddd"], [True, False, True]
LENGTHS = torch.tensor([3.0, 1.0, 5.0])  # tokens, the stop token included


@pytest.fixture(scope="module")
def samples():
    return text_samples(*TEXTS)


class Answers(Reward):
    """The least that a plugin has to write."""

    def __init__(self, answer):
        self.answer = answer

    def scores(self, samples):
        return self.answer(samples) if callable(self.answer) else self.answer


# --- The base class -------------------------------------------------------------------------------


def test_a_reward_needs_nothing_but_scores(samples, tmp_path):
    made = Answers(lambda s: Scores(s.lengths.float()))
    assert (made.members, made.zero, made.owner) == ([], 0.0, "")
    assert made.to(torch.device("cpu")) is made
    made.save(tmp_path)
    assert not list(tmp_path.iterdir())
    made.zero = 2.0
    found = made.score_samples(samples)
    assert found.score.tolist() == found.total.tolist() == (LENGTHS - 2).tolist()
    assert found.parts.tolist() == [[[3.0]], [[1.0]], [[5.0]]]  # before anything is taken off
    assert (found.part_std, found.hidden, found.token_score) == (None, None, None)
    with pytest.raises(TypeError, match="abstract"):
        Reward()


def test_what_tokens_get_is_added_where_they_stand_and_padding_gets_nothing(samples):
    rewards = torch.arange(15.0).reshape(3, 5) + 1
    made = Answers(Scores(torch.tensor([10.0, 20.0, 30.0]), token_score=rewards.clone()))
    made.zero = 1.0
    found = made.score_samples(samples)
    by_hand = [[1, 2, 3, 0, 0], [6, 0, 0, 0, 0], [11, 12, 13, 14, 15]]
    assert found.token_score.tolist() == by_hand
    assert found.total.tolist() == [9 + 6, 19 + 6, 29 + 65]
    assert found.score.tolist() == [9, 19, 29]


def test_a_reward_may_say_padding_is_nan(samples):
    rewards = torch.where(samples.mask, 1.0, math.nan)
    made = Answers(Scores(torch.zeros(3), token_score=rewards))
    assert made.score_samples(samples).total.tolist() == LENGTHS.tolist()


def test_no_gradient_is_kept_of_what_is_scored(samples):
    weight = torch.ones(1, requires_grad=True)
    assert not Answers(lambda s: Scores(s.lengths * weight)).score_samples(samples).score.grad_fn


THREE = torch.zeros(3)
FAULTS = {
    "kind": ([1.0, 2.0, 3.0], "a list, expected ostinato.Scores"),
    "nothing": (None, "a NoneType, expected ostinato.Scores"),
    "tensor": (THREE, "a Tensor, expected ostinato.Scores"),
    "score": (Scores(torch.zeros(3, 1)), "Scores whose score has shape (3, 1), expected (3,)"),
    "rows": (Scores(torch.zeros(2)), "Scores whose score has shape (2,), expected (3,)"),
    "numbers": (Scores([1.0, 2.0, 3.0]), "Scores whose score is a list, expected a tensor of flo"),
    "whole": (Scores(THREE.long()), "Scores whose score is a torch.int64, expected a tensor of fl"),
    "parts": (
        Scores(THREE, torch.zeros(3)),
        "Scores whose parts has shape (3,), expected (3, members, heads)",
    ),
    "part_std": (
        Scores(THREE, torch.zeros(3, 2, 4), torch.zeros(3, 4, 2)),
        "Scores whose part_std has shape (3, 4, 2), expected (3, 2, 4)",
    ),
    "hidden": (
        Scores(THREE, hidden=torch.zeros(3, 8)),
        "Scores whose hidden has shape (3, 8), expected (3, members, D)",
    ),
    "token_score": (
        Scores(THREE, token_score=torch.zeros(3, 4)),
        "Scores whose token_score has shape (3, 4), expected (3, 5)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_answer_is_a_sentence_that_names_whose_it_is(samples, fault):
    answer, said = FAULTS[fault]
    made = Answers(answer)
    made.owner = "mine"
    with pytest.raises(UserError) as caught:
        made.score_samples(samples)
    assert str(caught.value).startswith(f"plugin 'mine': its reward answered {said}")


@pytest.mark.parametrize("field", ["score", "parts", "part_std", "hidden", "token_score"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stops_at_once(samples, field, value):
    shapes = {"parts": (3, 1, 1), "part_std": (3, 1, 1), "hidden": (3, 1, 8), "token_score": (3, 5)}
    given = {name: torch.zeros(shape) for name, shape in shapes.items()} | {"score": torch.zeros(3)}
    given[field].view(-1)[0] = value
    made = Answers(Scores(**given))
    made.owner = "mine"
    with pytest.raises(NonFiniteError) as caught:
        made.score_samples(samples)
    assert str(caught.value) == f"plugin 'mine': its reward answered a {field} that is not finite"


def test_an_error_in_a_reward_is_laid_to_the_innermost_plugin(samples):
    def fails(*_):
        raise KeyError("x")

    inner = Answers(fails)
    inner.owner = "inner"
    outer = wrapped(combine([inner], lambda each: each.mean(1)), lambda samples, scores: scores)
    outer.owner = "outer"
    with pytest.raises(KeyError) as caught:
        outer.score_samples(samples)
    assert caught.value.__notes__[0].startswith(
        "in plugin 'inner', its reward (test_reward.py, line "
    )
    above = wrapped(Answers(Scores(torch.zeros(3))), fails)
    above.owner = "above"
    with pytest.raises(KeyError) as caught:
        above.score_samples(samples)
    assert caught.value.__notes__[0].startswith("in plugin 'above', its reward (")


# --- Combinations and wraps -----------------------------------------------------------------------


def test_rewards_of_any_kind_combine_beside_reward_models(kit, samples):
    """A column each, though one has no member; what its tokens get counts to its end."""
    model = kit.make().initial()
    rule = Answers(Scores(torch.tensor([1.0, 2.0, 3.0]), token_score=torch.ones(3, 5)))
    rule.zero = 0.5
    seen = []

    def reduce(each):
        seen.append(each)
        return each[:, 0] - 2 * each[:, 1]

    made = combine([model, rule], reduce)
    found = made.score_samples(samples)
    own = scored(model, *TEXTS).score
    torch.testing.assert_close(seen[0][:, 0], own, atol=1e-5, rtol=0)
    assert seen[0][:, 1].tolist() == [0.5 + 3, 1.5 + 1, 2.5 + 5]
    torch.testing.assert_close(found.score, own - 2 * seen[0][:, 1], atol=1e-5, rtol=0)
    assert made.members == [model]
    assert found.parts.shape == (3, 2, 1)
    assert (found.token_score, found.hidden) == (None, None)  # a rule has no features


def test_hidden_is_the_body_s_state_at_the_last_token(kit, samples):
    """From transformers alone, in two models; and none where their sizes differ."""
    first, second = kit.make().initial(), kit.make().initial(1, outputs=3)
    second.calibration = Calibration((1.0, 2.0, 3.0), 4.0, 5.0)  # it moves no feature
    found = combine([first, second], lambda each: each.mean(1)).score_samples(samples).hidden
    assert found.shape == (3, 2, 16)
    assert found.dtype == torch.float32
    for row, (prompt, response, finished) in enumerate(zip(*TEXTS, strict=True)):
        for place, model in enumerate((first, second)):
            ids = model.tokenizer(prompt + response, add_special_tokens=False)["input_ids"]
            ids += [model.tokenizer.eos_token_id] * finished
            with torch.no_grad():
                state = model.model.base_model(torch.tensor([ids]))[0][0, -1]
            torch.testing.assert_close(found[row, place], state, atol=1e-5, rtol=0)
    small = {"model_type": "gpt_neox", "hidden_size": 8, "num_attention_heads": 2}
    other = kit.make(random=small | {"num_hidden_layers": 1}).initial()
    assert combine([first, other], lambda each: each.mean(1)).score_samples(samples).hidden is None


def test_a_wrap_makes_scores_of_samples_and_scores(kit, samples, tmp_path):
    models = [kit.make().initial(seed) for seed in range(2)]
    inner = combine(models, lambda each: each.amin(1))
    inner.zero = 0.25

    def shaped(given, scores):
        assert given is samples
        assert scores.hidden.shape == (3, 2, 16)
        return replace(scores, score=scores.score.sigmoid() - given.lengths / 10)

    made = wrapped(wrapped(inner, shaped), lambda _, scores: replace(scores, score=-scores.score))
    made.zero = -3.0
    each = np.stack([scored(m, *TEXTS).score.double().numpy() for m in models], 1)
    wanted = 3 - (1 / (1 + np.exp(0.25 - each.min(1))) - LENGTHS.double().numpy() / 10)
    np.testing.assert_allclose(made.score_samples(samples).score, wanted, atol=1e-5)
    assert made.members == models
    made.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["member-0", "member-1"]
    loaded = RewardModel.load_checkpoint(tmp_path / "member-1").score(*TEXTS)
    torch.testing.assert_close(loaded, models[1].score(*TEXTS))


# --- Readers --------------------------------------------------------------------------------------


def read_by(kit, read, outputs=2, modules=None):
    body = kit.make().initial()
    body.readers = {**MEAN, "mine": Reader(read)}
    model = body.with_head(Draws(0), outputs, "mine")
    model.plugin_modules.update(modules or {})
    return model


def test_a_reader_sees_the_modules_of_its_model(kit, samples):
    """A decoder of what the head encodes; its features may take the place of the body's."""
    decoder = torch.nn.Linear(2, 1)

    def read(logits, zeros, modules):
        latent = logits - zeros[:2]
        score = modules["mine"](latent)
        return Scores(score.squeeze(-1), score[:, None], hidden=latent[:, None])

    model = read_by(kit, read, modules={"mine": decoder})
    model.calibration = Calibration((0.5, -0.5), 0.25, 2.0)
    found = model.score_samples(samples)
    latent = model.logits(samples).double().numpy() - [0.5, -0.5]
    weight, bias = (p.detach().double().numpy() for p in (decoder.weight, decoder.bias))
    wanted = ((latent @ weight.T + bias)[:, 0] - 0.25) / 2
    np.testing.assert_allclose(found.score.detach(), wanted, atol=1e-5)
    np.testing.assert_allclose(found.hidden[:, 0], latent, atol=1e-5)


def fails(*_):
    raise ZeroDivisionError("by hand")


READ_FAULTS = {
    "parts": (
        lambda logits, *_: Scores(logits[:, 0], logits[:, 0]),
        "Scores whose parts has shape (3,), expected (3, members, heads)",
    ),
    "members": (
        lambda logits, *_: Scores(logits[:, 0], logits[..., None]),
        "Scores of several members, or of tokens, expected parts (N, 1, heads)",
    ),
    "kind": (lambda logits, *_: logits[:, 0], "a Tensor, expected ostinato.Scores"),
    "score": (
        lambda logits, *_: Scores(logits),
        "Scores whose score has shape (3, 2), expected (3,)",
    ),
}


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_reader_that_answers_wrongly_is_a_sentence_with_its_name(kit, samples, fault):
    read, said = READ_FAULTS[fault]
    with pytest.raises(UserError) as caught:
        read_by(kit, read).score_samples(samples)
    assert str(caught.value) == f"plugin 'mine': its read answered {said}"


def test_a_reader_that_fails_or_reads_nan_is_named(kit, samples):
    with pytest.raises(ZeroDivisionError) as caught:
        read_by(kit, fails).score_samples(samples)
    assert caught.value.__notes__[0].startswith("in plugin 'mine', its read (")
    with pytest.raises(NonFiniteError, match="plugin 'mine': its read answered a score that is no"):
        read_by(kit, lambda x, z, m: Scores(x[:, 0] * math.nan)).score_samples(samples)


def test_the_head_comes_with_its_gradient(kit):
    """logits = hidden @ head.T, and a penalty on the head reaches it."""
    model = read_by(kit, read_mean)
    ids, mask, _ = model.joined(*model.encode(*TEXTS))
    outputs = model(ids, mask, 2)
    assert outputs.head.shape == (2, 16)
    torch.testing.assert_close(outputs.hidden @ outputs.head.T, outputs.logits)
    first, second = outputs.head  # ODIN keeps its two heads apart
    (first @ second).square().backward()
    with torch.no_grad():
        wanted = 2 * (first @ second) * torch.stack([second, first])
    torch.testing.assert_close(model.model.score.weight.grad, wanted)
