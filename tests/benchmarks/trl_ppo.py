"""The TRL side of the PPO speed comparison.

    python trl_ppo.py --setting a --steps 10 --threads 2

Runs ``trl.experimental.ppo.PPOTrainer`` as shipped and prints one JSON line.
Pins: torch 2.13.0 (CPU build), trl 1.12.0, transformers 5.23.0, accelerate 1.15.0,
datasets 5.2.0.

A step is timed from the end of the previous step to its own end
(``on_train_begin``, then every ``on_step_end``).  That covers fetching the
prompts, generation, reference, reward and value passes, advantages, both
updates, TRL's metrics and its garbage collection.  TRL's code is not changed: the
policy's ``generate`` is wrapped to count tokens, and ``--phases`` wraps more to time it.

``--gc frozen`` (the default) calls Python's ``gc.freeze()`` once before training.  TRL
calls ``gc.collect()`` twice a step, and a full collection walks every object that
importing torch, transformers and the rest left alive: a fixed cost that has nothing
to do with PPO, is lost in a large model's step, and would be most of a small one's.
Freezing those objects first makes the two calls nearly free, in TRL's favour.
``--gc shipped`` leaves it out and measures what a user gets who only calls TRL.

Settings chosen for TRL, each for speed on a CPU at no loss of work:

* ``gradient_checkpointing=False``: TRL's default is on, which recomputes every forward.
* ``bf16=False``: TRL's default is on; the comparison is in fp32 on both sides.
* ``per_device_train_batch_size=96``, ``gradient_accumulation_steps=1``,
  ``num_mini_batches=1``: one forward, one backward and one optimiser update per epoch.
* ``local_rollout_forward_batch_size=96``: one generate call and one pass of each
  scoring model per step (the default 64 would split 96 unevenly).
* ``optim="adamw_torch_fused"``: the fastest AdamW torch has on a CPU.
* ``use_cache`` is left as it is (on): turning it off for the passes that do not
  generate made no measurable difference.
* ``num_sample_generations=0``, no saving, no evaluation, no reporting, no progress
  bar, no metrics printed: nothing happens in a step that is not PPO.
* ``stop_token=None`` with pad and eos ids outside the vocabulary: all 24 tokens are
  always generated and none is masked.

``torch_compile`` stays off: see README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common

PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def build_tokenizer(setting):
    """The trainer wants a tokenizer for its pad and eos ids and to pad (nothing is ever padded)."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(setting.vocab_size)}
    vocabulary["<pad>"] = setting.pad_token_id
    vocabulary["<eos>"] = setting.eos_token_id
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="t0")),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )
    assert tokenizer.pad_token_id == setting.pad_token_id
    assert tokenizer.eos_token_id == setting.eos_token_id
    return tokenizer


def build_trainer(setting, steps, callbacks, output_dir):
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    work = common.WORK
    models = common.build_models(setting)
    args = PPOConfig(
        output_dir=output_dir,
        seed=common.SEED,
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=work.episodes,
        gradient_accumulation_steps=1,
        num_mini_batches=work.minibatches,
        num_ppo_epochs=work.ppo_epochs,
        total_episodes=steps * work.episodes,
        local_rollout_forward_batch_size=work.episodes,
        response_length=work.response_tokens,
        temperature=work.temperature,
        stop_token=None,
        stop_token_id=None,
        missing_eos_penalty=None,
        num_sample_generations=0,
        whiten_rewards=False,
        kl_coef=work.kl_coef,
        kl_estimator="k1",
        cliprange=work.cliprange,
        cliprange_value=work.cliprange_value,
        vf_coef=work.vf_coef,
        gamma=work.gamma,
        lam=work.lam,
        optim="adamw_torch_fused",
        learning_rate=work.learning_rate,
        weight_decay=work.weight_decay,
        lr_scheduler_type="constant",
        warmup_steps=0,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        push_to_hub=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    dataset = Dataset.from_dict({"input_ids": common.build_prompts(setting, steps)})
    trainer = PPOTrainer(
        args=args,
        processing_class=build_tokenizer(setting),
        model=models["policy"],
        ref_model=models["reference"],
        reward_model=models["reward"],
        value_model=models["value"],
        train_dataset=dataset,
        eval_dataset=dataset.select(range(work.episodes)),  # required by the trainer, never read
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


class Phases:
    """Rough split of a step, by wrapping the functions TRL's training loop calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._counted: dict[str, float] = {}

    def stop(self):
        """Stop counting: the loop still tidies up after the last timed step ends."""
        self.seconds, self._counted = {}, self.seconds

    @property
    def counted(self) -> dict[str, float]:
        return self._counted

    def wrap(self, owner, name, label):
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                key = label(*args) if callable(label) else label
                self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - began

        setattr(owner, name, timed)

    def install(self, trainer):
        from types import SimpleNamespace

        from trl.experimental.ppo import ppo_trainer

        self.wrap(ppo_trainer, "batch_generation", "generation")
        self.wrap(
            ppo_trainer,
            "forward",
            lambda model, *_: (
                "reference_forward" if model is trainer.ref_model else "update_forward"
            ),
        )
        self.wrap(
            ppo_trainer,
            "get_reward",
            lambda model, *_: (
                "reward_forward" if model is trainer.reward_model else "value_forward"
            ),
        )
        self.wrap(ppo_trainer, "selective_log_softmax", "log_softmax")
        self.wrap(trainer.accelerator, "backward", "backward")
        self.wrap(trainer.optimizer, "step", "optimizer_step")
        # The module's own `gc` name only: the interpreter's collector is left alone.
        import gc

        ppo_trainer.gc = SimpleNamespace(collect=gc.collect)
        self.wrap(ppo_trainer.gc, "collect", "gc_collect")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gc",
        choices=("frozen", "shipped"),
        default="frozen",
        help="freeze imported objects before training, or not (see above)",
    )
    parser.add_argument(
        "--phases", action="store_true", help="also report mean seconds per timed step by phase"
    )
    args = common.parse_args(parser=parser)

    import gc
    import os
    import warnings

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.filterwarnings("ignore")
    common.set_torch_threads(args.threads)

    import torch
    import transformers
    from transformers import TrainerCallback

    transformers.logging.set_verbosity_error()

    setting = common.SETTINGS[args.setting]
    clock = common.StepClock()
    phases = Phases() if args.phases else None
    eos_seen = []

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            clock.start()

        def on_step_end(self, args, state, control, **kwargs):
            clock.step_end()
            if phases and len(clock.seconds) == common.WARMUP_STEPS:
                phases.seconds.clear()
            elif phases and len(clock.seconds) == total_steps:
                phases.stop()

        def on_log(self, args, state, control, logs=None, **kwargs):
            eos_seen.append(logs["val/num_eos_tokens"])

    # Counts response tokens as TRL itself sees them: what the policy returned from generate.
    generated = []
    total_steps = args.steps + common.WARMUP_STEPS
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = build_trainer(setting, total_steps, [Clock()], output_dir)
        policy_generate = trainer.policy_model.generate

        def counting_generate(**kwargs):
            output = policy_generate(**kwargs)
            generated.append((kwargs["input_ids"].shape, output.sequences))
            return output

        trainer.policy_model.generate = counting_generate
        if phases:
            phases.install(trainer)
        if args.gc == "frozen":
            gc.collect()
            gc.freeze()
        # TRL prints a banner; standard output is for the JSON line only.
        standard_output, sys.stdout = sys.stdout, sys.stderr
        try:
            trainer.train()
        finally:
            sys.stdout = standard_output

    if torch.get_num_threads() != args.threads:
        raise RuntimeError("something changed the thread count")
    if any(eos_seen) or len(eos_seen) != total_steps:
        raise RuntimeError("a response held an eos token")
    sequences = torch.stack([s for _, s in generated])
    if int(sequences.max()) >= setting.vocab_size:
        raise RuntimeError("a response held a special token")
    updates = {int(state["step"]) for state in trainer.optimizer.state.values()}
    if len(updates) != 1:
        raise RuntimeError(f"parameters differ in update count: {sorted(updates)}")
    work = {
        "steps": len(clock.seconds),
        "episodes": sum(shape[0] for shape, _ in generated),
        "prompt_tokens": sum(shape[0] * shape[1] for shape, _ in generated),
        "response_tokens": sum(s.shape[0] * (s.shape[1] - shape[1]) for shape, s in generated),
        "optimizer_updates": updates.pop(),
    }
    common.check_work(work, args.steps)
    extra = {"gc": args.gc}
    if phases:
        extra["phases"] = {
            name: round(seconds / args.steps, 6)
            for name, seconds in sorted(phases.counted.items(), key=lambda item: -item[1])
        }
        extra["phases"]["rest"] = round(
            (sum(clock.timed()) - sum(phases.counted.values())) / args.steps, 6
        )
    common.print_json(common.report("trl", setting, args.threads, clock, work, PACKAGES, **extra))


if __name__ == "__main__":
    main()
