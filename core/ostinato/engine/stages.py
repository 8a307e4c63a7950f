"""The stages of one iteration: what each step of the loop does, and how its result is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset, concatenate_datasets

from ostinato.config.errors import Pause, UserError
from ostinato.contract.answers import wrong
from ostinato.contract.batches import PolicyHandle, PolicyHistory
from ostinato.data.preferences import (
    Preferences,
    collect_meta,
    comparisons_of,
    draw_responses,
    label,
    load_data,
    own_responses,
    prompts_for,
    save_data,
    select_comparisons,
)
from ostinato.data.training import combine_data, refine_data
from ostinato.engine.calibration import calibrate, held_out_accuracy
from ostinato.engine.evaluation import Evaluator
from ostinato.engine.policy_training import PolicyTrainer
from ostinato.engine.reward_training import RewardTrainer
from ostinato.engine.session import Session
from ostinato.models.policy import Policy
from ostinato.models.reward import Reward, combine, mean_over_members
from ostinato.models.reward_model import RewardModel
from ostinato.models.weights import distance

Models = Sequence[Reward]  # R~_1 .. R~_k
Pairs = Sequence[Preferences]  # D~_1 .. D~_k
WAITING = "pairs-to-label"  # the name under which pairs are kept while a labeller waits
ACCURACIES = ("accuracy", "accuracy_labels")  # on held-out pairs, by gold and by the labels


def gather(s: Session, policy: Policy, models: Models) -> Preferences:
    """D~_k: pairs of the current policy's responses, labelled; ``models`` are R~_1..R~_{k-1}."""
    s.tell("stage_started", stage="preferences", total=0)
    ctx, plugins = s.ctx, s.plugins
    train, held_out = prompts_for(s.prompts.preference, ctx)
    count = plugins.need("meta_responses")

    def draw() -> Dataset:
        here = ctx.at(reward_models=tuple(models))
        drawn = comparisons_of(draw_responses(policy, train, plugins, here), train, ctx)
        pairs = select_comparisons(drawn, models, plugins, here)
        if not len(held_out):
            return pairs
        measured = own_responses(policy, held_out, ctx, "held-out preferences")
        return concatenate_datasets([pairs, comparisons_of(measured, held_out, ctx)])

    def kept(make: Callable[[], Dataset]) -> Dataset:
        return s.directory.cached(name, make, save_data, load_data)  # with what waits for a row

    name = s.name(f"cache-{WAITING}")
    pairs = kept(draw) if (s.directory.path / name).exists() else draw()
    meta = collect_meta(policy, train, count, ctx) if count else None
    try:
        labelled = label(pairs, plugins, ctx)
    except Pause:  # another draw might differ, on another device, from what people see
        kept(lambda: pairs)
        raise
    s.log_actions("preferences")
    first = len(pairs) - len(held_out) * math.comb(s.config.preferences.responses, 2)
    measured = labelled.select(range(first, len(pairs))) if len(held_out) else None
    return Preferences(labelled.select(range(first)), measured, meta)


def training_data(s: Session, preferences: Pairs) -> Dataset:
    """D_k: combined, then refined."""

    def fit(data: Dataset, purpose: str, **changes: Any) -> RewardModel:
        start = s.initial_reward_model.with_head(s.draws, purpose=f"head {purpose}")
        trainer = RewardTrainer(s.plugins, s.ctx, s.log, s.tokenizer, plain=True)
        return trainer(start, data, purpose=purpose, **changes)

    s.tell("stage_started", stage="data", total=0)
    data = combine_data([p.train for p in preferences], s.plugins, s.ctx)
    data = refine_data(data, s.plugins, s.ctx.at(fit=fit, cached=s.cached))
    s.log_actions("data")
    return data


def _ask(s: Session, hook: str, kind: type | tuple[type, ...], expected: str, **given: Any) -> Any:
    """The answer of the hook's owner; UserError, naming it, where it is not of this kind.

    A subclass of Policy is none: the run copies and saves the language model alone.
    """
    answer = s.plugins.one(hook, **given)
    subclass = isinstance(answer, Policy) and type(answer) is not Policy
    if subclass or not isinstance(answer, kind):
        fault = f"answered a {type(answer).__name__}, expected {expected}"
        raise wrong(s.plugins.owners[hook], hook, fault)
    return answer


def train_reward_model(s: Session, data: Dataset, pairs: Preferences) -> Reward:
    """R~_k: ``reward_model.members`` models, each with its zero on the ruler."""
    members = []
    for m in range(s.config.reward_model.members):
        ctx = s.ctx.at(member=m)
        fit = RewardTrainer(s.plugins, ctx, s.log, s.tokenizer, pairs.meta)
        start = s.initial_reward_model.with_head(s.draws, purpose=f"reward head {m}")
        s.tell("stage_started", stage="reward_model", total=0, member=m)
        if "train_rm" in s.plugins.owners:
            given = {"fit": fit, "initial": start, "data": data, "ctx": ctx}
            model = _ask(s, "train_rm", RewardModel, "a RewardModel", **given)
            far = distance(model.model, start.model)
            s.plugins.acted(s.plugins.owners["train_rm"], "train_rm", far)
        else:
            model = fit(start, data)
        calibrate(s, model, data, pairs.held_out)
        members.append(model)
    held = pairs.held_out
    shares = [held_out_accuracy(m, held, s.tokenizer) for m in members] if held else []
    s.log(
        "reward_model_trained",
        **{key: [share[key] for share in shares] or None for key in ACCURACIES},
        calibration=[vars(m.calibration) for m in members],
        actions=s.plugins.taken_actions(),
    )
    return members[0] if len(members) == 1 else combine(members, mean_over_members)


def initial_policy(s: Session, history: PolicyHistory) -> PolicyHandle:
    """pi_k_init, as a handle; a policy made for it gets its name when it is saved."""
    owner = s.plugins.owners["init_policy"]
    wanted = "an ostinato.Policy or one of the history's handles"
    given = {"history": history, "ctx": s.ctx}
    answer = _ask(s, "init_policy", (Policy, PolicyHandle), wanted, **given)
    made = answer.load() if isinstance(answer, PolicyHandle) else answer.to(s.backend.device)
    s.plugins.acted(owner, "init_policy", distance(made.lm, s.sft_policy.lm))
    s.log_actions("policy_init")
    if isinstance(answer, PolicyHandle):
        return answer
    return PolicyHandle(s.name("policy_init"), lambda: made)


def save_handle(s: Session, handle: PolicyHandle, folder: Path) -> None:
    """The policy's name if the run holds it already, else its weights."""
    if handle.name == s.name("policy_init"):
        handle.load().save(folder)
    (folder / "policy_init.json").write_text(json.dumps({"policy": handle.name}), encoding="utf-8")


def load_handle(s: Session, folder: Path) -> PolicyHandle:
    """pi_k_init by identity: the very policy that it was when the run first came here."""
    name = json.loads((folder / "policy_init.json").read_text(encoding="utf-8"))["policy"]
    return s.handle(name)


def train_policy(
    s: Session, initial: PolicyHandle, reward: Reward, latest: Reward, data: Dataset | None
) -> Policy:
    """pi_k, optimised on R_k and evaluated on the way; ends with the iteration's summary row."""
    s.tell("stage_started", stage="policy", total=s.config.rl.rollouts)
    start = initial.load()
    evaluate = Evaluator(s.prompts.evaluation, start, reward, latest, data, s.plugins, s.ctx)

    def record(policy: Policy, step: int) -> None:
        row = evaluate(policy, step)
        s.log("eval", step=step, **row)
        s.tell("evaluated", step=step, row=row)

    name, prompts = s.name("policy"), s.prompts.rl
    optimise = PolicyTrainer(s.plugins, s.ctx, s.directory, name, prompts, s.log, record, latest)
    if "train_policy" in s.plugins.owners:
        own = prompts.take(range(len(prompts)))  # its lists are not the run's
        given = {"initial": start, "reward_model": reward, "data": data, "prompts": own}
        given |= {"optimise": optimise, "ctx": s.ctx}
        policy: Policy = _ask(s, "train_policy", Policy, "an ostinato.Policy", **given)
        far = distance(policy.lm, start.lm)
        s.plugins.acted(s.plugins.owners["train_policy"], "train_policy", far)
    else:
        policy = optimise(start, reward)
    s.log_actions("policy")  # of train_policy, and of the last evaluation
    s.log("iteration", **summary(s))
    return policy


def summary(s: Session) -> dict[str, Any]:
    """The last evaluation of the iteration, its peak of gold, and the reward model's accuracies."""
    rows = [r for r in s.directory.metrics.rows() if r["iteration"] == s.iteration]
    evals = [r for r in rows if r["kind"] == "eval"]
    if not evals:
        raise UserError("no evaluation was made; a train_policy hook switched every one off")
    trained = [r for r in rows if r["kind"] == "reward_model_trained"][-1:]  # none in some runs
    known = {k: [a for r in trained for a in r[k] or () if a is not None] for k in ACCURACIES}
    gold = [r["gold_sft_std"] for r in evals if r["gold_sft_std"] is not None]
    last = {
        key: value
        for key, value in evals[-1].items()
        if isinstance(value, int | float | None) and key not in {"iteration", "step"}
    }
    return {
        **last,
        "peak_gold": max(gold, default=None),
        **{key: fmean(shares) if shares else None for key, shares in known.items()},
    }
