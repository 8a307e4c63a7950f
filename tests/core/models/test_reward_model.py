"""Reward models: head, scores from text and tokens, combinations, checkpoints."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from ostinato import UserError, combine
from ostinato.config.draws import Draws
from ostinato.config.sections import RewardModelSection
from ostinato.models.loading import padded
from ostinato.models.reward import Calibration, CombinedReward
from ostinato.models.reward_model import MEAN, Reader, RewardModel, load_reward, read_mean
from ostinato.models.samples import Samples

FAMILIES = ["gpt2", "gpt_neox", "llama"]
PROMPTS = ["x", "yz", "zzxy", "yyyyyyy"]
RESPONSES = ["abc", "d", "aaaabbbb", "c"]
FINISHED = [True, False, True, True]


def samples_of(model: RewardModel, tokenizer=None, left: int = 0, right: int = 0) -> Samples:
    """The texts above as a policy with this tokenizer would have sampled them."""
    tokenizer = tokenizer or model.tokenizer
    end = [tokenizer.eos_token_id]
    prompts = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in PROMPTS]
    responses = [
        tokenizer(r, add_special_tokens=False)["input_ids"] + (end if done else [])
        for r, done in zip(RESPONSES, FINISHED, strict=True)
    ]
    pad = tokenizer.pad_token_id
    ids, mask = padded(prompts, pad, left=True)
    made, real = padded(responses, pad)
    wider = torch.nn.functional.pad
    return Samples(
        tokenizer,
        wider(ids, (left, 0), value=pad),
        wider(mask, (left, 0), value=False),
        wider(made, (0, right), value=pad),
        wider(real, (0, right), value=False),
        torch.tensor(FINISHED),
    )


# --- The stop token -------------------------------------------------------------------------------


def test_text_ends_with_the_stop_token_that_the_policy_draws(kit, tmp_path):
    """Scored from text or from the policy's tokens, kept and loaded: the same numbers."""
    model = kit.make().initial()
    stop = model.tokenizer.get_vocab()["!"]
    samples = samples_of(model)
    ended = samples.response_ids == model.tokenizer.eos_token_id
    samples.response_ids = samples.response_ids.masked_fill(ended & samples.mask, stop)
    assert samples.responses == RESPONSES
    wanted = model.score_samples(samples).score
    texts = PROMPTS, RESPONSES, FINISHED
    behind_eos = (model.score(*texts) - wanted).abs() > 1e-3
    assert behind_eos.tolist() == FINISHED
    model.stop = stop
    torch.testing.assert_close(model.score(*texts), wanted, atol=1e-5, rtol=0)
    model.copy().save(tmp_path)
    loaded = RewardModel.load_checkpoint(tmp_path)
    torch.testing.assert_close(loaded.score(*texts), wanted, atol=1e-5, rtol=0)


# --- The head -------------------------------------------------------------------------------------


def test_head_is_normal_with_std_one_over_root_of_d_plus_one(kit):
    """Huang et al. 2023: N(0, 1 / sqrt(d + 1)), no bias; transformers' own default is std .02."""
    one = kit.make(random={"model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 1})
    weight = one.initial(outputs=500).model.score.weight.detach()
    assert weight.shape == (500, 64)
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(65), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=0.003)
    assert one.initial().model.score.bias is None


def test_head_is_the_same_at_every_iteration_and_differs_by_member(kit):
    body = kit.make().initial()

    def head(draws, purpose="reward head 0"):
        return body.with_head(draws, purpose=purpose).model.score.weight

    assert torch.equal(head(Draws(0, 1)), head(Draws(0, 4)))
    assert not torch.equal(head(Draws(0)), head(Draws(0), "reward head 1"))
    assert not torch.equal(head(Draws(0)), head(Draws(1)))


# --- Scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_padding_or_batch(kit, family):
    model = kit.make(family=family).initial()
    alone = torch.cat(
        [model.score([p], [r], [f]) for p, r, f in zip(PROMPTS, RESPONSES, FINISHED, strict=True)]
    )
    torch.testing.assert_close(model.score(PROMPTS, RESPONSES, FINISHED), alone, atol=1e-5, rtol=0)
    for left, right in ((0, 0), (5, 3)):
        samples = samples_of(model, left=left, right=right)
        score = model.score_samples(samples).score
        torch.testing.assert_close(score, alone, atol=1e-5, rtol=0)
    one_length = samples_of(model).rows(torch.tensor([1]))
    one_length.prompt_ids = one_length.prompt_ids[:, -2:]
    one_length.prompt_mask = one_length.prompt_mask[:, -2:]
    torch.testing.assert_close(model.score_samples(one_length).score, alone[1:2], atol=1e-5, rtol=0)
    assert float(alone.std()) > 0.05


def test_score_is_read_at_the_last_real_token(kit):
    """The head on the body's state there, by hand, from transformers alone."""
    model = kit.make().initial()
    ids = model.tokenizer("x" + "abc", add_special_tokens=False)["input_ids"]
    ids.append(model.tokenizer.eos_token_id)
    with torch.no_grad():
        state = model.model.base_model(torch.tensor([ids]))[0][0, -1].double().numpy()
    expected = state @ model.model.score.weight.detach().double().numpy()[0]
    assert float(model.score(["x"], ["abc"], [True])) == pytest.approx(expected, abs=1e-5)
    assert float(model.score(["x"], ["abc"], [False])) != pytest.approx(expected, abs=1e-3)


def words(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a letter, in its own order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    entries = ["<end>", "<pad>", "<unk>", *vocabulary]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(entries)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    )


def test_another_tokenizer_goes_through_text(kit):
    """The policy's ids mean other letters here: only the text path gives the right scores."""
    model = kit.make().initial()
    policy = words(list("zyxdcba"))
    samples = samples_of(model, policy)
    assert samples.prompts == PROMPTS
    assert samples.responses == RESPONSES
    expected = model.score(PROMPTS, RESPONSES, FINISHED)
    torch.testing.assert_close(model.score_samples(samples).score, expected, atol=1e-5, rtol=0)


def test_equal_tokenizers_skip_the_text(kit, monkeypatch):
    model = kit.make().initial()
    expected = model.score(PROMPTS, RESPONSES, FINISHED)
    samples = samples_of(model)
    monkeypatch.setattr(RewardModel, "score_text", None)
    torch.testing.assert_close(model.score_samples(samples).score, expected, atol=1e-5, rtol=0)


def test_long_texts_keep_the_response_and_the_end_of_the_prompt(kit):
    model = kit.make(max_tokens=6).initial()
    ids, mask, response = model.joined([[10, 11, 12, 13], [10]], [[20, 21, 22], [20] * 9])
    assert ids[0].tolist() == [11, 12, 13, 20, 21, 22]
    assert response[0].tolist() == [False] * 3 + [True] * 3
    assert ids[1].tolist() == [10, 20, 20, 20, 20, 20]
    assert bool(mask.all())


def test_calibrated_scores_and_parts(kit):
    """Heads less their zeros, over the unit; the score, their mean, less its own too."""
    model = kit.make().initial(outputs=3)
    raw = model.score_text(PROMPTS, RESPONSES, FINISHED)
    model.calibration = Calibration((2.0, 0.0, -1.0), 0.5, 4.0)
    made = model.score_text(PROMPTS, RESPONSES, FINISHED)
    assert made.parts.shape == (4, 1, 3)
    heads = raw.parts - torch.tensor([2.0, 0.0, -1.0])
    torch.testing.assert_close(made.parts, heads / 4)
    torch.testing.assert_close(made.score, (heads.mean((1, 2)) - 0.5) / 4)
    assert made.part_std is None


def test_read_mean():
    logits = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    read = read_mean(logits, torch.tensor([1.0, -1.0]), {})
    assert read.score.tolist() == [2, -1]
    assert read.parts.tolist() == [[[0, 4]], [[-1, -1]]]


def test_views_repeat_the_inputs_in_one_pass(kit):
    model = kit.make().initial(outputs=2)
    ids, mask, _ = model.joined(*model.encode(PROMPTS, RESPONSES, FINISHED))
    out = model(ids, mask, views=3)
    assert out.score.shape == (3, 4)
    assert out.logits.shape == (3, 4, 2)
    assert out.hidden.shape == (3, 4, 16)
    for view in range(3):
        torch.testing.assert_close(out.logits[view], model(ids, mask).logits[0])


def test_the_head_makes_logits_of_the_states_at_every_token(kit):
    model = kit.make().initial(outputs=2)
    ids, mask, _ = model.joined(*model.encode(PROMPTS, RESPONSES, FINISHED))
    out = model(ids, mask, views=2)
    everywhere = out.states @ out.head.T  # (V, N, T, outputs)
    assert everywhere.shape == (2, *ids.shape, 2)
    for row, end in enumerate((mask.sum(1) - 1).tolist()):
        torch.testing.assert_close(everywhere[:, row, end], out.logits[:, row])
        cut = model(ids[row : row + 1, : end // 2 + 1], mask[row : row + 1, : end // 2 + 1])
        torch.testing.assert_close(everywhere[0, row, end // 2], cut.logits[0, 0])


# --- Combinations ---------------------------------------------------------------------------------


def test_combine_reduces_calibrated_member_scores(kit):
    models = [kit.make().initial(seed) for seed in range(3)]
    for i, model in enumerate(models):
        model.calibration = Calibration((float(i),), 0.1, 1.0 + i)
    made = combine([combine(models[:2], lambda s: s.sum(1)), models[2]], lambda s: s.amin(1))
    each = np.stack([m.score(PROMPTS, RESPONSES, FINISHED).numpy() for m in models], 1)
    assert made.members == models  # flat: a member inside a member counts once
    found = made.score_samples(samples_of(models[0]))
    np.testing.assert_allclose(found.score, each.min(1), atol=1e-5)
    parts = each + 0.1 / np.arange(1, 4)  # a score's own mean is none of its parts
    np.testing.assert_allclose(found.parts[..., 0], parts, atol=1e-5)


def test_models_with_different_numbers_of_heads_combine(kit):
    one, many = kit.make().initial(), kit.make().initial(outputs=3)
    made = combine([one, many], lambda s: s.mean(1)).score_samples(samples_of(one))
    assert made.parts.shape == (4, 4, 1)


# --- Checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("outputs", [1, 4])
def test_a_checkpoint_loads_with_transformers_and_gives_the_raw_scores(
    kit, tmp_path, family, outputs
):
    model = kit.make(family=family).initial(outputs=outputs)
    raw = model.score_text(PROMPTS, RESPONSES, FINISHED).parts[:, 0]
    model.calibration = Calibration((1.5,) * outputs, 0.25, 0.5)
    model.save(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids, mask, _ = model.joined(*model.encode(PROMPTS, RESPONSES, FINISHED))
    assert tokenizer.pad_token_id == theirs.config.pad_token_id != tokenizer.eos_token_id
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits, raw, atol=1e-5, rtol=0)
    ours = load_reward(tmp_path)
    assert ours.calibration == model.calibration
    assert ours.score_text(PROMPTS, RESPONSES, FINISHED).parts.shape == (4, 1, outputs)
    torch.testing.assert_close(
        ours.score(PROMPTS, RESPONSES, FINISHED), (raw.mean(1) - 1.75) / 0.5, atol=1e-5, rtol=0
    )


def test_members_load_again_in_their_order(kit, tmp_path):
    models = [kit.make().initial(seed) for seed in range(12)]
    CombinedReward(models, lambda s: s.mean(1)).save(tmp_path)
    again = load_reward(tmp_path)
    for a, b in zip(models, again.members, strict=True):
        assert torch.equal(a.model.score.weight, b.model.score.weight)


def test_a_checkpoint_of_another_kind_is_one_sentence(kit, tmp_path):
    kit.make().initial().model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no ostinato calibration"):
        RewardModel.load_checkpoint(tmp_path)


def deep(size):
    """A module with weights, and buffers of two kinds, at two depths."""
    return torch.nn.Sequential(torch.nn.Linear(size, 2), torch.nn.BatchNorm1d(2))


def test_plugin_modules_are_saved_with_the_model_and_made_anew(kit, tmp_path):
    from safetensors.torch import load_file

    readers = {**MEAN, "prototypes": Reader(modules=deep)}
    model = kit.make().initial()
    model.plugin_modules["prototypes"] = deep(16)
    model.plugin_modules["prototypes"](torch.randn(5, 16))  # moves the buffers
    model.save(tmp_path)
    saved = load_file(tmp_path / "plugin_modules.safetensors")
    drawn = torch.get_rng_state()
    again = RewardModel.load_checkpoint(tmp_path, readers)
    assert torch.equal(torch.get_rng_state(), drawn)  # though a module was drawn
    ours, theirs = (m.plugin_modules["prototypes"].eval() for m in (model, again))
    states = torch.randn(3, 16)
    assert torch.equal(theirs(states), ours(states))  # it computes; weights alone could not
    (tmp_path / "again").mkdir()
    again.save(tmp_path / "again")  # a resumed run merges and saves loaded models
    kept = load_file(tmp_path / "again" / "plugin_modules.safetensors")
    assert {k: v.tolist() for k, v in kept.items()} == {k: v.tolist() for k, v in saved.items()}


@pytest.mark.parametrize("size", [None, 3])
def test_modules_that_no_plugin_here_makes_so_are_left_out(kit, tmp_path, size):
    """Of a run with another plugin, or with other settings of it; they play no part in a score."""
    model = kit.make().initial()
    model.plugin_modules["prototypes"] = deep(16)
    model.save(tmp_path)
    made = {} if size is None else {"prototypes": Reader(modules=lambda _: deep(size))}
    again = RewardModel.load_checkpoint(tmp_path, {**MEAN, **made})
    assert not len(again.plugin_modules)
    found = again.score(PROMPTS, RESPONSES, FINISHED)
    torch.testing.assert_close(found, model.score(PROMPTS, RESPONSES, FINISHED), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_lm_head_gives_the_causal_model_s_logits(kit, tmp_path, family):
    """lm_logits (V, N, T, vocabulary) of a body loaded from a causal LM's checkpoint."""
    random = {**kit.make(family=family).ctx.config.reward_model.random, "vocab_size": 259}
    from transformers import AutoConfig

    with Draws(3).forked("lm"):
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**random)).eval()
    lm.save_pretrained(tmp_path)
    section = RewardModelSection(model=str(tmp_path), tokenizer="bytes")
    model = RewardModel.load(section, lm_head=True)
    ids, mask, response = model.joined(*model.encode(PROMPTS, RESPONSES, FINISHED))
    made = model(ids, mask, views=2).lm_logits
    with torch.no_grad():
        theirs = lm(input_ids=ids, attention_mask=mask.long()).logits
    assert made.shape == (2, *ids.shape, 259)
    for view in made:
        torch.testing.assert_close(view[mask], theirs[mask], atol=1e-4, rtol=0)
    assert model.model.score.in_features == 16
    assert response.sum(1).tolist() == [4, 1, 9, 2]
    assert RewardModel.load(section).lm_head is None


def test_a_lost_lm_head_is_refused_not_made_up(kit, tmp_path):
    """transformers would fill the head of a classifier's checkpoint with random numbers."""
    kit.make().initial().save(tmp_path)
    section = RewardModelSection(model=str(tmp_path))
    assert RewardModel.load(section).lm_head is None
    with pytest.raises(UserError, match="a GPTNeoXForSequenceClassification without one"):
        RewardModel.load(section, lm_head=True)


def test_a_body_without_a_linear_score_is_refused():
    section = RewardModelSection(
        tokenizer="bytes",
        random={"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2},
    )
    with pytest.raises(UserError, match="a bert model has no linear `score` head; expected"):
        RewardModel.load(section)


def test_texts_are_cut_to_the_context_of_the_body(kit):
    """A proxy whose tokenizer makes longer rows than the policy's may have less room for them."""
    model = kit.make(family="gpt2", max_tokens=1000).initial()
    assert model.max_tokens == model.model.config.max_position_embeddings == 64
    assert kit.make(family="gpt2", max_tokens=20).initial().max_tokens == 20
    cut = model.score(["x" * 90], ["a" * 30], [False])
    torch.testing.assert_close(model.score(["x" * 34], ["a" * 30], [False]), cut)


# --- Readers with settings ------------------------------------------------------------------------


def _weighted(logits, zeros, modules, first=1.0):
    """first * output 0 + (1 - first) * output 1."""
    logits, parts = logits - zeros, logits
    from ostinato.models.samples import Scores

    score = first * logits[:, 0] + (1 - first) * logits[:, 1]
    return Scores(score, logits[:, None, :], parts.abs()[:, None, :])


READERS = {**MEAN, "weighted": Reader(_weighted)}


def test_a_reader_s_settings_are_part_of_the_model_s_score(kit, tmp_path):
    """Training, calibration, text and tokens, copies and checkpoints all read the same score."""
    one = kit.make()
    body = one.initial()
    body.readers = READERS
    model = body.with_head(Draws(0), 2, "weighted", settings={"first": 0.25})
    logits = model.raw(*model.encode(PROMPTS, RESPONSES, FINISHED))[0].numpy()
    expected = 0.25 * logits[:, 0] + 0.75 * logits[:, 1]
    ids, mask, _ = model.joined(*model.encode(PROMPTS, RESPONSES, FINISHED))
    np.testing.assert_allclose(model(ids, mask).score[0].detach(), expected, atol=1e-5)
    np.testing.assert_allclose(model.score(PROMPTS, RESPONSES, FINISHED), expected, atol=1e-5)
    np.testing.assert_allclose(model.copy().score(PROMPTS, RESPONSES, FINISHED), expected, 1e-5)
    model.calibration = Calibration((1.0, 1.0), 0.0, 2.0)
    model.save(tmp_path)
    again = load_reward(tmp_path, READERS)
    scores = again.score_samples(samples_of(model))
    assert (again.reader, again.settings) == ("weighted", {"first": 0.25})
    np.testing.assert_allclose(scores.score, (expected - 1) / 2, atol=1e-5)
    np.testing.assert_allclose(scores.part_std[:, 0], abs(logits) / 2, atol=1e-5)


def test_a_fresh_head_forgets_the_settings_of_the_old_one(kit):
    body = kit.make().initial()
    body.readers = READERS
    model = body.with_head(Draws(0), 2, "weighted", settings={"first": 0.25})
    assert model.with_head(Draws(0)).settings == {}
    assert model.settings == {"first": 0.25}


def test_combine_over_heads_counts_each_head_as_a_member(kit):
    """(B, 1 + 3): the calibrated score of the one, then the calibrated heads of the other."""
    one, many = kit.make().initial(), kit.make().initial(1, outputs=3)
    one.calibration, many.calibration = (
        Calibration((0.5,), 0.0, 2.0),
        Calibration((-1.0, 0.0, 1.0), 0.0, 0.5),
    )
    seen = []

    def reduce(each):
        seen.append(each)
        return each.amin(1)

    made = combine([one, many], reduce, heads=True).score_samples(samples_of(one))
    texts = one.encode(PROMPTS, RESPONSES, FINISHED)
    raw = [m.raw(*texts)[0].double().numpy() for m in (one, many)]
    each = np.concatenate([(raw[0] - 0.5) / 2, (raw[1] - [-1, 0, 1]) / 0.5], axis=1)
    assert seen[0].shape == (4, 4)
    np.testing.assert_allclose(seen[0], each, atol=1e-5)
    np.testing.assert_allclose(made.score, each.min(1), atol=1e-5)
