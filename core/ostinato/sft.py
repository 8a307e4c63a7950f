"""The optional supervised stage before the loop, through TRL's SFTTrainer."""

from __future__ import annotations

import tempfile

from ostinato.backend import Backend
from ostinato.config import RunConfig
from ostinato.draws import seed_for
from ostinato.errors import UserError, closest
from ostinato.policy import Policy
from ostinato.prompts import read_rows


def train_sft(policy: Policy, config: RunConfig, backend: Backend) -> Policy:
    """The policy fitted to prompt + completion rows; the loss is taken on completions.

    A cut-short SFT stage starts again: the trainer's own checkpoints are pickles.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = config.sft
    assert settings is not None
    rows = read_rows(settings.data, settings.split, "sft.data")
    for column in (settings.prompt, settings.completion):
        if column not in rows[0]:
            raise UserError(
                f"sft: rows of {settings.data} have no column '{column}'{closest(column, rows[0])}"
            )
    data = Dataset.from_list(
        [
            {"prompt": str(r[settings.prompt]), "completion": str(r[settings.completion])}
            for r in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=policy.lm,
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch,
                learning_rate=settings.lr,
                seed=seed_for(config.seed, "sft") % 2**31,
                use_cpu=backend.device.type == "cpu",
                bf16=backend.dtype == "bf16",
                max_length=config.prompts.max_tokens + config.generation.max_new_tokens,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=data,
            processing_class=policy.tokenizer,
        )
        trainer.train()
    return Policy(policy.lm.to(backend.device).eval(), policy.tokenizer, policy.temperature)
