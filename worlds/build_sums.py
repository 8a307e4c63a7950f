"""Rebuilds what the world of sums ships: `python worlds/build_sums.py`, minutes on one core.

Writes `policy/` (a GPT-NeoX language model, fine-tuned on a pupil's additions), `reward_model/`
(a narrower one, from whose body reward models start) and `prompts.jsonl` (prompts with their
answers). Fixed seeds, fixed steps, one thread: the same versions on the same kind of
machine give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from ostinato_worlds.sums import SumsGold, arithmetic

PACKAGE = Path(__file__).resolve().parent / "ostinato_worlds" / "sums"
PROMPTS = 1500
BATCH, LEARNING_RATE, WARMUP = 128, 3e-3, 50
POLICY, REWARD_MODEL = (64, 2, 1500), (48, 3, 1500)  # hidden size, layers, steps
IGNORED = -100  # cross_entropy's own value for "no target here"


def main() -> None:
    """Build everything into `--out` and report how good the policy is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    tokenizer = make_tokenizer()
    prompts = write_prompts(out / "prompts.jsonl")
    policy = fine_tune(tokenizer, *POLICY, seed=0)
    reward_model = fine_tune(tokenizer, *REWARD_MODEL, seed=1)
    for name, model in (("policy", policy), ("reward_model", reward_model)):
        model.save_pretrained(out / name)
        (out / name / "model.safetensors").chmod(0o644)  # written for its owner alone
        tokenizer.save_pretrained(out / name)
    report(policy, tokenizer, prompts)


def write_prompts(path: Path) -> list[str]:
    """Distinct prompts, ``{"prompt": ..., "answer": ...}`` a line."""
    rng = random.Random(0)
    drawn: dict[str, str] = {}
    while len(drawn) < PROMPTS:
        first, second = arithmetic.draw(rng)
        drawn[arithmetic.prompt_text(first, second)] = str(first + second)
    lines = [json.dumps({"prompt": p, "answer": answer}) + "\n" for p, answer in drawn.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return list(drawn)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character; decoding puts nothing between them."""
    tokens = arithmetic.vocabulary()
    characters = Tokenizer(WordLevel({t: i for i, t in enumerate(tokens)}, arithmetic.UNK))
    characters.pre_tokenizer = Split(Regex("."), "isolated")
    characters.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=arithmetic.PAD,
        eos_token=arithmetic.EOS,
        unk_token=arithmetic.UNK,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
        padding_side="left",
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int
) -> GPTNeoXForCausalLM:
    """A GPT-NeoX with random weights."""
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        },
        hidden_act="gelu_pytorch_tanh",
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPTNeoXForCausalLM(config)


def batch(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Inputs (B, T), padded right; targets (B, T - 1), the response and its stop token alone."""
    rows = arithmetic.attempts(BATCH, rng)
    texts = [f"{prompt}{response}{arithmetic.EOS}" for prompt, response in rows]
    how = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    ids: Tensor = tokenizer(texts, **how)["input_ids"]
    starts = torch.tensor([len(prompt) - 1 for prompt, _ in rows])[:, None]
    unwanted = (torch.arange(ids.shape[1] - 1) < starts) | (ids[:, 1:] == tokenizer.pad_token_id)
    return ids, ids[:, 1:].masked_fill(unwanted, IGNORED)


def fine_tune(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int, steps: int, seed: int
) -> GPTNeoXForCausalLM:
    """A language model of a pupil's responses, which are drawn as it is trained."""
    torch.manual_seed(seed)
    rng = random.Random(seed + 1)
    model = make_model(tokenizer, hidden_size, layers)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    model.train()
    for step in range(steps):
        ids, targets = batch(tokenizer, rng)
        logits = model(input_ids=ids[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (0.05 + 0.95 * cosine)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 250 == 0:
            print(f"hidden size {hidden_size}, step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.train(False)
    return model


@torch.no_grad()
def report(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> None:
    """Sample one response a prompt and print what the checker says."""
    torch.manual_seed(0)
    given = tokenizer(prompts, padding=True, return_tensors="pt")
    ids = model.generate(  # type: ignore[misc]
        **given, do_sample=True, top_k=0, max_new_tokens=arithmetic.RESPONSE_TOKENS
    )[:, given["input_ids"].shape[1] :]  # (prompts, at most 32)
    finished = (ids == tokenizer.eos_token_id).any(1)
    responses = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for name, part in SumsGold().parts(prompts, responses, finished.tolist()).items():
        print(f"{name}: {part.mean():.3f}")
    judged = [arithmetic.judge(p, r) for p, r in zip(prompts, responses, strict=True)]
    print(f"steps without a mistake: {sum(all(j[:-1]) for j in judged) / len(judged):.3f}")
    print(f"finished: {finished.float().mean():.3f}")
    for prompt, response in list(zip(prompts, responses, strict=True))[:10]:
        print(f"{prompt}{response}  {arithmetic.judge(prompt, response)}")


if __name__ == "__main__":
    main()
