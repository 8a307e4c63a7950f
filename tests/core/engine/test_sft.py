"""The supervised stage: completions alone are learnt, in the loop's own tokens."""

from __future__ import annotations

import json

import pytest
import torch

import ostinato
from ostinato.config.errors import UserError
from ostinato.engine.sft import completions, train_sft
from ostinato.machine.backend import Backend
from ostinato.models.loading import padded
from ostinato_worlds import toy

ROWS = [{"prompt": "xyz"[i % 3] * (1 + i % 4), "completion": "abcabc"} for i in range(24)]


def make(policies, folder, rows=ROWS, family="gpt_neox", model=None, **sections):
    (folder / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    section = {"data": str(folder / "sft.jsonl"), "epochs": 8, "batch": 8, "lr": 1e-2}
    return policies.make(family, model=model, sft=section, **sections)


def nll(policy, prompt, completion):
    """Mean NLL of a completion's tokens, by plain transformers."""
    with torch.no_grad():
        logits = policy.lm(input_ids=torch.tensor([prompt + completion])).logits[0]
    table = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return -float(table.gather(1, torch.tensor(completion)[:, None]).mean())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_the_loss_on_held_out_completions_falls(policies, tmp_path, family):
    dropout = {"hidden_dropout": 0.1} if family == "gpt_neox" else {}
    kit = make(policies, tmp_path, family=family, model=dropout)
    policy = kit.policy()
    prompt = policy.tokenizer("zyx", add_special_tokens=False)["input_ids"]  # not in the data
    completion = policy.tokenizer("abcabc")["input_ids"]
    before = nll(policy, prompt, completion)
    trained = train_sft(policy, kit.config, Backend(kit.config.backend))
    assert nll(trained, prompt, completion) < before / 3
    assert not any(module.training for module in trained.modules())
    assert all(p.dtype == torch.float32 for p in trained.parameters())


def test_rows_are_the_loops_own_tokens_and_the_loss_is_on_completions(policies, tmp_path):
    kit = make(policies, tmp_path, rows=[{"prompt": "xy", "completion": "ab"}])
    tokenizer = kit.policy().tokenizer
    (row,) = completions(tokenizer, kit.config)
    assert row["input_ids"] == [123, 124, 100, 101, tokenizer.eos_token_id]
    assert row["completion_mask"] == [0, 0, 1, 1, 1]


def test_a_response_ends_with_the_stop_token_of_the_run(policies, tmp_path):
    rows = [{"prompt": "xy", "completion": "ab"}]
    kit = make(policies, tmp_path, rows=rows, generation={"stop": "!"})
    tokenizer = kit.policy().tokenizer
    (row,) = completions(tokenizer, kit.config)
    assert row["input_ids"] == [123, 124, 100, 101, tokenizer.get_vocab()["!"]]


def test_a_conversation_is_no_completion(policies, tmp_path):
    rows = [{"prompt": "xy", "completion": [{"role": "assistant", "content": "ab"}]}]
    kit = make(policies, tmp_path, rows=rows)
    with pytest.raises(UserError, match="has a list in its column 'completion', not text"):
        completions(kit.policy().tokenizer, kit.config)


def test_prompts_take_the_form_of_the_template(policies, tmp_path):
    rows = [{"instruction": "say", "input": "", "output": "ab"}]
    kit = make(policies, tmp_path, rows, prompts={"data": "x", "template": "open-assistant"})
    kit.config.sft.completion = "output"
    tokenizer = kit.policy().tokenizer
    (row,) = completions(tokenizer, kit.config)
    prompt = [t for t, m in zip(row["input_ids"], row["completion_mask"], strict=True) if not m]
    assert tokenizer.decode(prompt) == "<|prompter|>say<|endoftext|><|assistant|>"


def test_prompts_are_not_learnt(policies, tmp_path, monkeypatch, capfd):
    """The trainer's first loss is the mean NLL of completion tokens, prompts left out."""
    kit = make(policies, tmp_path, rows=ROWS[:8])
    policy = kit.policy()
    rows = list(completions(policy.tokenizer, kit.config))
    ids, mask = padded([r["input_ids"] for r in rows], policy.tokenizer.pad_token_id)
    learnt, _ = padded([r["completion_mask"] for r in rows], 0)
    with torch.no_grad():
        logits = policy.lm(input_ids=ids, attention_mask=mask.long()).logits
    nlls = -logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    wanted = float(nlls[learnt[:, 1:].bool()].mean())
    assert abs(wanted - float(nlls[mask[:, 1:]].mean())) > 1e-3
    from trl import SFTTrainer

    losses, step = [], SFTTrainer.training_step

    def watched(self, *rest, **named):
        losses.append(float(step(self, *rest, **named)))
        return torch.tensor(losses[-1])

    monkeypatch.setattr(SFTTrainer, "training_step", watched)
    train_sft(policy, kit.config, Backend(kit.config.backend))
    assert losses[0] == pytest.approx(wanted, rel=1e-4)
    assert len(losses) == 8
    assert capfd.readouterr().out == ""  # nothing between a run's own lines


def test_equal_seeds_give_equal_policies(policies, tmp_path):
    found = []
    for _ in "ab":
        kit = make(policies, tmp_path)
        kit.config.sft.epochs = 1.0
        torch.rand(3)  # the global generator stands elsewhere
        found.append(train_sft(kit.policy(), kit.config, Backend(kit.config.backend)))
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completions": "b"}, "has no column 'completion'; did you mean 'compl"),
        ({"promt": "a", "completion": "b"}, "has no column 'prompt'; did you mean 'promt'"),
    ],
)
def test_a_missing_column_is_one_sentence(policies, tmp_path, row, said):
    kit = make(policies, tmp_path, rows=[*ROWS, row])
    with pytest.raises(UserError, match=said) as caught:
        completions(kit.policy().tokenizer, kit.config)
    assert "sft.data" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_with_an_sft_section_trains_once_and_resumes(tmp_path):
    data = tmp_path / "sft.jsonl"
    prompts = [json.loads(line)["prompt"] for line in toy.PROMPTS.read_text().splitlines()[:16]]
    rows = [{"prompt": p, "completion": "the acting was great ."} for p in prompts]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    small = {
        "iterations": 1,
        "rl": {"rollouts": 1, "rollout_size": 4, "minibatch": 4},
        "reward_model": {"updates": 1, "batch": 4},
        "prompts": {"preference": 4, "held_out": 2, "evaluation": 4},
    }
    section = {"data": str(data), "epochs": 1, "lr": 1e-3}
    config = {"world": "toy", "sft": section, **small}
    first = ostinato.run(config, tmp_path / "run")
    marker = (tmp_path / "run/sft/done.json").read_text()
    again = ostinato.run(config, tmp_path / "run")
    assert (tmp_path / "run/sft/done.json").read_text() == marker
    assert again.iterations == first.iterations

    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(toy.POLICY).state_dict()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run/sft").state_dict()
    assert any(not torch.equal(start[name], trained[name]) for name in start)
