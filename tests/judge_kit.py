"""A language model for the tests of judges: it reads texts, and a function decides its logits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

SHORT = {"template": "{prompt}|{first}|{second}", "lead": ">"}


def quality(text):
    return text.count("a") - text.count("b")


class TellsTexts:
    """A language model that reads its text, and whose logits a function of the text decides.

    ``logits(text)`` answers {token text: logit} for what follows; all else is -20. It knows the
    texts that it was asked, without padding, in ``seen``.
    """

    device = torch.device("cpu")
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=4096))

    def __init__(self, logits, tokenizer):
        self.logits, self.tokenizer, self.seen = logits, tokenizer, []

    def forward(self, input_ids, attention_mask):
        made = torch.full((*input_ids.shape, 259), -20.0)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            text = self.tokenizer.decode(ids[mask.bool()])
            self.seen.append(text)
            for token, logit in self.logits(text).items():
                made[row, int(mask.sum()) - 1, self.tokenizer.encode(token)[0]] = logit
        return SimpleNamespace(logits=made)

    __call__ = forward


def prefers_quality(strength, bias):
    """Answer A rather than B by strength x the difference in quality, and by its place."""

    def logits(text):
        first, second = text.split("|")[1:3]
        return {"A": strength * (quality(first) - quality(second)) + bias, "B": 0.0}

    return logits


def by_definition(lm, tokenizer, data, template, lead, answers, temperature):
    """P(first preferred), text by text in float64, an answer's tokens summed by the chain rule."""

    def logprob(text, answer):
        known, whole = (
            tokenizer.encode(t, add_special_tokens=False) for t in (text, text + answer)
        )
        rows = lm(torch.tensor([whole])).logits[0].double().detach().numpy()
        rows = rows - rows.max(1, keepdims=True)
        table = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        return sum(table[t - 1, whole[t]] for t in range(len(known), len(whole)))

    labels = []
    for row in data:
        odds = []
        for first, second in ((row["first"], row["second"]), (row["second"], row["first"])):
            asked = template.replace("{prompt}", row["prompt"]).replace("{first}", first)
            asked = asked.replace("{second}", second) + "\n" + lead
            odds.append(logprob(asked, answers[0]) - logprob(asked, answers[1]))
        labels.append(1 / (1 + np.exp(-(odds[0] - odds[1]) / 2 / temperature)))
    return np.array(labels)
