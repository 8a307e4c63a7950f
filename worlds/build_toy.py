"""Rebuilds what the toy world ships: `python worlds/build_toy.py`, about a minute on one core.

Writes `policy/` (a GPT-NeoX language model, fine-tuned on reviews), `reward_model/` (a smaller one,
from whose body reward models start), `prompts.jsonl`, and `corpus.jsonl` (prompts with reviews such
as the policy was fine-tuned on). Fixed seeds, fixed steps, one thread: the
same versions on the same kind of machine give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from ostinato_worlds.toy import ToyGold, grammar

PACKAGE = Path(__file__).resolve().parent / "ostinato_worlds" / "toy"
TEXTS, EPOCHS, BATCH, LEARNING_RATE, WARMUP = 8000, 4, 128, 3e-3, 20
CORPUS = 256  # rows of corpus.jsonl
IGNORED = -100  # cross_entropy's own value for "no target here"


def main() -> None:
    """Build everything into `--out` and report how good the policy is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    tokenizer = make_tokenizer()
    policy = fine_tune(tokenizer, hidden_size=64, seed=0)
    reward_model = fine_tune(tokenizer, hidden_size=32, seed=1)
    for name, model in (("policy", policy), ("reward_model", reward_model)):
        model.save_pretrained(out / name)
        (out / name / "model.safetensors").chmod(0o644)  # written for its owner alone
        tokenizer.save_pretrained(out / name)

    prompts = [prompt.text for prompt in grammar.all_prompts()]
    random.Random(0).shuffle(prompts)
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
    (out / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    write_corpus(out / "corpus.jsonl")
    report(policy, tokenizer, prompts)


def write_corpus(path: Path) -> None:
    """``{"prompt": ..., "text": ...}`` a line, drawn as the policy's own training texts were."""
    pairs = grammar.corpus(CORPUS, random.Random(2))
    lines = [json.dumps({"prompt": prompt, "text": text}) + "\n" for prompt, text in pairs]
    path.write_text("".join(lines), encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words split at white space; decoding joins them by single spaces."""
    tokens = grammar.vocabulary()
    words = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, grammar.UNK))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=grammar.PAD,
        eos_token=grammar.EOS,
        unk_token=grammar.UNK,
        clean_up_tokenization_spaces=False,  # it would glue full stops to the word before
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int) -> GPTNeoXForCausalLM:
    """Two layers of GPT-NeoX with random weights; no first token, as all prompts start alike."""
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=2,
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


def encode_corpus(tokenizer: PreTrainedTokenizerFast, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (texts, 32), prompt and response; targets (texts, 24), the response alone."""
    pairs = grammar.corpus(TEXTS, random.Random(seed))
    texts = [f"{prompt} {response} {grammar.EOS}" for prompt, response in pairs]
    width = grammar.PROMPT_WORDS + grammar.RESPONSE_TOKENS
    inputs = tokenizer(texts, padding="max_length", max_length=width, return_tensors="pt")
    ids: Tensor = inputs["input_ids"]  # (texts, 32)
    targets = ids[:, grammar.PROMPT_WORDS :]  # (texts, 24)
    return ids, targets.masked_fill(targets == tokenizer.pad_token_id, IGNORED)


def fine_tune(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int, seed: int
) -> GPTNeoXForCausalLM:
    """A language model of responses given prompts, trained on a corpus of its own."""
    torch.manual_seed(seed)
    model = make_model(tokenizer, hidden_size)
    ids, targets = encode_corpus(tokenizer, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    batches = TEXTS // BATCH
    steps = EPOCHS * batches
    model.train()
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(TEXTS)
        rows = order[step % batches * BATCH :][:BATCH]
        logits = model(input_ids=ids[rows, :-1]).logits[:, grammar.PROMPT_WORDS - 1 :]
        loss = functional.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (0.1 + 0.9 * cosine)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % batches == 0:
            print(f"hidden size {hidden_size}, step {step + 1}: loss {loss.item():.3f}")
    model.train(False)
    return model


@torch.no_grad()
def report(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> None:
    """Sample one response a prompt and print what the judge says."""
    torch.manual_seed(0)
    ids = model.generate(  # type: ignore[misc]
        **tokenizer(prompts, return_tensors="pt"),
        do_sample=True,
        top_k=0,
        max_new_tokens=grammar.RESPONSE_TOKENS,
    )[:, grammar.PROMPT_WORDS :]  # (prompts, at most 24)
    finished = (ids == tokenizer.eos_token_id).any(1)
    responses = tokenizer.batch_decode(ids, skip_special_tokens=True)
    judge = ToyGold()
    scores = judge.score(prompts, responses, finished.tolist())
    print(f"gold of {len(prompts)} samples: mean {scores.mean():.3f}, std {scores.std():.3f}")
    for name, part in judge.parts(prompts, responses, finished.tolist()).items():
        print(f"  {name}: {part.mean():.3f}")
    print(f"finished: {finished.float().mean():.3f}")
    for prompt, response, score in zip(prompts[:5], responses[:5], scores[:5], strict=True):
        print(f"{score:+.2f}  {prompt} {response}")


if __name__ == "__main__":
    main()
