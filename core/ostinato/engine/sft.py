"""The optional supervised stage before the loop, through TRL's SFTTrainer."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

from datasets import Dataset

from ostinato.config.draws import seed_for
from ostinato.config.sections import RunConfig
from ostinato.data.prompts import read_rows, render, text_of
from ostinato.machine.backend import Backend
from ostinato.models.generation import stop_token
from ostinato.models.loading import prompt_tokens, response_tokens
from ostinato.models.policy import Policy


def prompt_answers(config: RunConfig) -> tuple[list[str], list[str]]:
    """Prompts and responses of the SFT data, as text; UserError where a row lacks a column."""
    settings = config.sft
    assert settings is not None
    where = f"sft.data '{settings.data}'"
    texts, answers = [], []
    for row in read_rows(settings.data, settings.split, "sft.data"):
        texts.append(render(row, config.prompts.template, settings.prompt, where))
        answers.append(text_of(row, settings.completion, where))
    return texts, answers


def completions(tokenizer: Any, config: RunConfig) -> Dataset:
    """SFT rows as ``input_ids`` and ``completion_mask``, 1 on the completion and its stop token."""
    texts, answers = prompt_answers(config)
    prompts = prompt_tokens(tokenizer, texts)
    stop = stop_token(tokenizer, config.generation)
    responses = response_tokens(tokenizer, answers, [True] * len(answers), stop)
    pairs = list(zip(prompts, responses, strict=True))
    return Dataset.from_dict(
        {
            "input_ids": [p + r for p, r in pairs],
            "completion_mask": [[0] * len(p) + [1] * len(r) for p, r in pairs],
        }
    )


def train_sft(policy: Policy, config: RunConfig, backend: Backend) -> Policy:
    """The policy fitted to prompt + completion rows; the loss is taken on completions.

    Prompts take the form of ``prompts.template`` and both sides the very tokens that they have in
    the loop, a stop token last. A cut-short SFT stage starts again: the trainer's own checkpoints
    are pickles.
    """
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    settings = config.sft
    assert settings is not None
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():  # its new name is unknown to the older transformers 5
            warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated")
            arguments = SFTConfig(
                output_dir=folder,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch,
                learning_rate=settings.lr,
                seed=seed_for(config.seed, "sft") % 2**31,
                use_cpu=backend.device.type == "cpu",
                bf16=backend.dtype == "bf16",
                max_length=config.prompts.max_tokens + config.generation.max_new_tokens,
                completion_only_loss=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
            )
        trainer = SFTTrainer(
            model=policy.lm,
            args=arguments,
            train_dataset=completions(policy.tokenizer, config),
            processing_class=policy.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Policy(policy.lm.to(backend.device).eval(), policy.tokenizer, policy.temperature)
