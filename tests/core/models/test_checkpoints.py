"""Checkpoints of models: every weight is there, no code runs, sums round as in fresh models."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import ostinato
from ostinato.config.errors import UserError
from ostinato.config.sections import GoldSection, PolicySection, RewardModelSection
from ostinato.models.gold import load_gold
from ostinato.models.loading import load_model, load_saved
from ostinato.models.policy import Policy
from ostinato.models.reward_model import RewardModel, load_reward, trained_reward
from ostinato_worlds import toy
from run_kit import TOY

PROMPTS, RESPONSES, FINISHED = ["ab", "c"], ["de", "f"], [True, False]


@pytest.fixture(name="policy_folder")
def _policy_folder(policies, tmp_path):
    """A GPT-NeoX policy, as a run saves it."""
    policies.make().policy().save(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture(name="reward_folder")
def _reward_folder(kit, tmp_path):
    """A GPT-NeoX reward model, as a run saves it."""
    kit.make().initial().save(tmp_path / "reward")
    return tmp_path / "reward"


def rename(folder, change):
    """Give every weight the name that ``change`` makes of its own, or drop it where that is ''."""
    path = folder / "model.safetensors"
    weights = {change(name): w for name, w in load_file(path).items()}
    weights.pop("", None)
    save_file(weights, path, {"format": "pt"})


DAMAGES = {
    "all": lambda name: "",
    "head": lambda name: "" if name.startswith(("embed_out", "score")) else name,
    "one": lambda name: "" if name.endswith("layers.1.mlp.dense_h_to_4h.bias") else name,
    "compiled": lambda name: f"_orig_mod.{name}",
}


def refused(load):
    with pytest.raises(UserError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_policy_that_lacks_a_weight_is_refused(policy_folder, damage):
    rename(policy_folder, DAMAGES[damage])
    body = "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"
    missing = body if damage == "one" else "lm_head.weight"  # transformers' name for embed_out
    end = f"is no whole GPTNeoXForCausalLM: its checkpoint holds no '{missing}'"
    section = PolicySection(model=str(policy_folder))
    assert refused(lambda: Policy.load(section, 1.0)) == f"policy.model: '{policy_folder}' {end}"
    own = refused(lambda: Policy.load_checkpoint(policy_folder, 1.0))
    assert own == f"checkpoint: '{policy_folder}' {end}"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reward_model_that_lacks_a_weight_is_refused(reward_folder, damage):
    rename(reward_folder, DAMAGES[damage])
    end = "is no whole GPTNeoXForSequenceClassification: its checkpoint holds no '"
    for load in (
        lambda: load_reward(reward_folder),
        lambda: trained_reward(str(reward_folder), "plugin 'x'"),
        lambda: load_gold(GoldSection(model=str(reward_folder)), torch.device("cpu")),
    ):
        assert end in refused(load)
    section = RewardModelSection(model=str(reward_folder))
    if damage == "head":  # the one weight that a run makes anew
        assert RewardModel.load(section).model.config.num_labels == 1
    else:
        assert refused(lambda: RewardModel.load(section)).startswith("reward_model.model: ")


def test_tied_weights_are_not_missed(policies, tmp_path):
    policy = policies.make("gpt2").policy()
    policy.save(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = Policy.load_checkpoint(tmp_path, 1.0).lm
    assert again.lm_head.weight is again.transformer.wte.weight
    Policy.load(PolicySection(model=str(tmp_path)), 1.0)
    RewardModel.load(RewardModelSection(model=str(tmp_path)), lm_head=True)


def test_loaded_weights_are_aligned_as_fresh_ones_are(policy_folder, reward_folder):
    """Products of a batch of 2 or 3 rows round by alignment: a resumed run would differ."""
    section = PolicySection(model=str(policy_folder))
    body = RewardModelSection(model=str(policy_folder))
    models = [
        Policy.load(section, 1.0).lm,
        Policy.load_checkpoint(policy_folder, 1.0).lm,
        RewardModel.load(body).model.base_model,
        RewardModel.load_checkpoint(reward_folder).model,
    ]
    for model in models:
        assert {p.data_ptr() % 64 for p in model.parameters()} == {0}


def test_the_temperature_of_a_run_is_its_checkpoints(policies, policy_folder):
    kit = policies.make()
    samples = kit.sample(kit.policy(), [[3, 4]])
    cold, warm = (Policy.load_checkpoint(policy_folder, t) for t in (0.5, 2.0))
    states = warm.hidden(samples)
    torch.testing.assert_close(cold.logits(states), 4 * warm.logits(states))


# What else lies in the folder


AUTOS = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
CODE = "raise AssertionError('custom code ran')\n"


@pytest.mark.parametrize("known", [True, False])
def test_no_code_in_a_runs_own_checkpoint_runs_or_is_asked_for(
    policy_folder, reward_folder, known, monkeypatch
):
    asked = []

    def agree(question):
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", agree)
    for folder in (policy_folder, reward_folder):
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = dict.fromkeys(AUTOS, "evil.Evil")
        config["model_type"] = config["model_type"] if known else "evil"
        (folder / "config.json").write_text(json.dumps(config))
        words = json.loads((folder / "tokenizer_config.json").read_text())
        words["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
        (folder / "tokenizer_config.json").write_text(json.dumps(words))
        (folder / "evil.py").write_text(CODE)
    loads = [
        lambda: Policy.load_checkpoint(policy_folder, 1.0),
        lambda: RewardModel.load_checkpoint(reward_folder),
        lambda: trained_reward(str(reward_folder), "plugin 'x'"),
    ]
    for load in loads:
        if known:  # transformers has the class, and takes its own
            load()
        else:
            assert "contains custom code" in refused(load)
    assert asked == []


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_a_pickle_in_a_runs_own_checkpoint_is_not_loaded(
    auto, policy_folder, reward_folder, monkeypatch
):
    folder = policy_folder if auto is AutoModelForCausalLM else reward_folder
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    load_saved(auto, folder)
    weights.unlink()
    assert "cannot be loaded: " in refused(lambda: load_saved(auto, folder))


# Embeddings larger than the tokenizer


def padded_policy(folder):
    """The toy policy with 16 embeddings behind its vocabulary, each as likely as a frequent one."""
    shutil.copytree(toy.POLICY, folder)
    lm = AutoModelForCausalLM.from_pretrained(folder)
    size = lm.config.vocab_size
    lm.resize_token_embeddings(size + 16, mean_resizing=False)
    with torch.no_grad():
        for table in (lm.get_input_embeddings().weight, lm.get_output_embeddings().weight):
            table[size:] = table[10]
    lm.save_pretrained(folder)
    return size


def test_embeddings_behind_the_vocabulary_are_cut_off(tmp_path):
    size = padded_policy(tmp_path / "padded")
    plain = Policy.load(PolicySection(model=str(toy.POLICY)), 1.0)
    cut = Policy.load(PolicySection(model=str(tmp_path / "padded")), 1.0)
    assert cut.lm.config.vocab_size == size == cut.lm.get_output_embeddings().out_features
    for a, b in zip(plain.lm.parameters(), cut.lm.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_padded_policy_runs_beside_a_smaller_reward_model(tmp_path):
    padded_policy(tmp_path / "padded")
    overrides = [*TOY, f"policy.model={tmp_path / 'padded'}"]
    assert len(ostinato.run("toy", tmp_path / "run", overrides).iterations) == 1


def test_a_tokenizer_with_a_hole_in_its_ids_keeps_its_last_token(words, policies):
    tokenizer = words()
    tokenizer.get_vocab = lambda: {"<eos>": 0, "<pad>": 1, "a": 2, "z": 11}
    section = policies.make().config.policy
    model = load_model(AutoModelForCausalLM, section, tokenizer, "policy")
    assert model.get_input_embeddings().num_embeddings == 12
