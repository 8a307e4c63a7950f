"""Texts as a policy with byte tokens would have sampled them, for rewards that score samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ostinato.config.sections import ModelSection
from ostinato.models.loading import load_tokenizer, padded, prompt_tokens, response_tokens
from ostinato.models.reward import Reward
from ostinato.models.samples import Samples, Scores


def text_samples(
    prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
) -> Samples:
    section = ModelSection(tokenizer="bytes", random={"model_type": "gpt_neox"})
    tokenizer = load_tokenizer(section, "policy")
    pad = tokenizer.pad_token_id
    tokens = prompt_tokens(tokenizer, list(prompts))
    answers = response_tokens(tokenizer, list(responses), list(finished), tokenizer.eos_token_id)
    ended = torch.tensor(list(finished))
    made = Samples(tokenizer, *padded(tokens, pad, left=True), *padded(answers, pad), ended)
    made.texts = list(prompts)
    return made


def scored(
    reward: Reward, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
) -> Scores:
    return reward.score_samples(text_samples(prompts, responses, finished))
