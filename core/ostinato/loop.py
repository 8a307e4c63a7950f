"""Iterated RLHF: Algorithm 1 of Wolf et al. 2025, each step a stage that is made once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ostinato.config.reading import load_config
from ostinato.contract.batches import PolicyHistory
from ostinato.data.preferences import Preferences, load_data, save_data
from ostinato.engine import stages
from ostinato.engine.combining import Combination
from ostinato.engine.session import Session, Watcher, check
from ostinato.models.policy import Policy
from ostinato.models.reward import Reward
from ostinato.models.reward_model import load_reward


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the rows of metrics.jsonl, and one summary row an iteration."""

    directory: Path
    metrics: list[dict[str, Any]]
    iterations: list[dict[str, Any]]


def run(
    source: str | Path | Mapping[str, Any],
    out: str | Path,
    overrides: Sequence[str] = (),
    watch: Sequence[Watcher] = (),
) -> Run:
    """Run, or resume, what a run file (or world name, or mapping) says, in the folder ``out``.

    Raises UserError for what a person can mend, Pause when a labeller waits for people.
    """
    config = load_config(source, overrides)
    plugins = check(config, str(source) if isinstance(source, str | Path) else "run")
    with Session(config, plugins, Path(out), watch) as session:
        iterate(session)
        rows = session.directory.metrics.rows()
        summaries = [row for row in rows if row["kind"] == "iteration"]
        session.tell("run_finished", directory=Path(out), rows=summaries)
    return Run(Path(out), rows, summaries)


def iterate(s: Session) -> None:
    """Algorithm 1: how each stage is made, how saved, and how a resumed run loads it."""
    history = PolicyHistory(s.sft)
    policy = s.sft_policy  # pi_0 = pi_sft
    preferences: list[Preferences] = []
    reward_models: list[Reward] = []
    for k in range(1, s.config.iterations + 1):
        s.begin(k, history)
        data = None
        if s.plugins.learn_rewards:  # else nobody asks for a label, and R_k is made of no model
            data = learn_reward(s, policy, preferences, reward_models)

        # R_k = CombineRM([R~_1 .. R~_k])   [combine_rm, wrap_reward]
        combination = Combination(s, reward_models, preferences, data)
        reward = s.stage("combined", combination.make, combination.save, combination.load)
        latest = reward_models[-1] if reward_models else reward

        # pi_k_init = InitPolicy([pi_0 .. pi_{k-1}])   [init_policy]
        initial = s.stage(
            "policy_init",
            lambda: stages.initial_policy(s, history),
            lambda made, folder: stages.save_handle(s, made, folder),
            lambda folder: stages.load_handle(s, folder),
        )

        # pi_k = TrainRL(pi_k_init, R_k)   [train_policy, policy_algorithm, reward_transform, ...]
        policy = s.stage(
            "policy",
            lambda: stages.train_policy(s, initial, reward, latest, data),
            Policy.save,
            s.load_policy,
        )
        s.end()
        history.initial.append(s.handle(initial.name))
        history.final.append(s.handle(s.name("policy")))


def learn_reward(
    s: Session, policy: Policy, preferences: list[Preferences], reward_models: list[Reward]
) -> Dataset:
    """The steps that a run without a reward model leaves out; answers D_k."""
    # Draw y0, y1 ~ pi_{k-1}(. | x) for every prompt x and label them: D~_k
    # [draw_responses, select_comparisons, label]
    pairs = s.stage(
        "preferences",
        lambda: stages.gather(s, policy, reward_models),
        Preferences.save,
        Preferences.load,
    )
    preferences.append(pairs)

    # D_k = CombineData([D~_1 .. D~_k])   [combine_data, refine_data]
    data = s.stage("data", lambda: stages.training_data(s, preferences), save_data, load_data)

    # R~_k = TrainRM(R_init, D_k)   [train_rm, preference_loss, rm_loss, meta_update]
    latest = s.stage(
        "reward_model",
        lambda: stages.train_reward_model(s, data, pairs),
        lambda made, folder: made.save(folder),
        lambda folder: load_reward(folder, s.plugins.readers),
    )
    reward_models.append(latest.to(s.backend.device))
    return data
