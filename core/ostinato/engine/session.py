"""What a run stands on: its checked config, plugins, models, prompts, folder and watchers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, disable_progress_bars
from transformers import CONFIG_MAPPING
from transformers.utils import logging as hf_logging

from ostinato.config.draws import Draws
from ostinato.config.errors import UserError, blamed, closest
from ostinato.config.sections import ModelSection, PromptsSection, RunConfig
from ostinato.contract.algorithms import refills, size_fault
from ostinato.contract.answers import algorithm_fault
from ostinato.contract.batches import PolicyHandle, PolicyHistory
from ostinato.contract.context import Context
from ostinato.contract.events import Event, EventKind
from ostinato.contract.plugins import Plugins, activate
from ostinato.contract.policy_algorithm import PolicyAlgorithm
from ostinato.data.preferences import load_data, save_data
from ostinato.data.prompts import PromptSplits, load_prompts, split_prompts
from ostinato.engine.sft import prompt_answers, train_sft
from ostinato.machine.backend import Backend
from ostinato.models.functions import try_function
from ostinato.models.generation import check_length, stop_token
from ostinato.models.gold import load_gold, try_gold
from ostinato.models.loading import vocabulary_key
from ostinato.models.policy import Policy
from ostinato.models.prompts import PromptSet
from ostinato.models.reward_model import RewardModel
from ostinato.models.ruler import Ruler
from ostinato.models.samples import Samples, Scorer, Texts
from ostinato.runs.directory import Load, Make, RunDirectory, Save
from ostinato.runs.record import other_files

T = TypeVar("T")
Watcher = Callable[[Event], None]
PATHS = (".", "/", "~")  # what a path may start with, and no hub name does
TOLD: Mapping[str, EventKind] = {"kept": "kept", "stopped": "stopped"}  # rows that are events


def check(config: RunConfig, where: str) -> Plugins:
    """Everything that can be known before anything is computed or loaded; the active plugins.

    Raises UserError, every complaint a line.
    """
    plugins = activate(config.wanted_plugins, where)
    own = (*at_odds(config, plugins), *_missing(config, plugins))
    found = [*other_files(config, plugins), *own]
    if found:
        raise UserError("\n".join(f"{where}: {said}" for said in found))
    return plugins


def at_odds(config: RunConfig, plugins: Plugins) -> Iterator[str]:
    """What plugins cannot work with in the rest of the run file, a sentence each."""
    members, combiner = plugins.need("members"), plugins[plugins.owners["combine_rm"]].instance
    parts = [
        config.reward_model.members,
        *(getattr(a.instance, "heads", 1) for a in plugins.active),
    ]
    if not getattr(combiner, "reward_models", True):  # then only what it has of its own
        parts = [getattr(combiner, "heads", 1)]
    if members and max(parts) < members:
        asking = next(a.name for a in plugins.active if a.needs.get("members"))
        yield (
            f"plugin '{asking}' needs at least {members} heads or members, for one reward model "
            "alone has no variance; set reward_model.members, or list a plugin with heads"
        )
    # known here where the algorithm is the plugin itself; the engine refuses the others
    owner = plugins.owners["policy_algorithm"]
    algorithm = plugins[owner].instance
    if isinstance(algorithm, PolicyAlgorithm):
        if fault := algorithm_fault(algorithm):
            yield f"plugin '{owner}': is {fault}"
        elif fault := size_fault(owner, algorithm, config.rl):
            yield fault
    try:
        refills(plugins)
    except UserError as error:
        yield str(error)
    yield from _unlearnable(config, plugins)
    given = {"config": config, "plugins": {a.name: a.instance for a in plugins.active}}
    for one in plugins.active:
        if callable(check_run := getattr(one.instance, "check_run", None)):
            asked = signature(check_run).parameters
            with blamed(one.name, "its check_run"):
                found = list(check_run(**{name: given[name] for name in asked}))
            yield from map(str, found)


def _unlearnable(config: RunConfig, plugins: Plugins) -> Iterator[str]:
    """What keeps a run from learning a reward model, or from doing without one."""
    if not plugins.learn_rewards:
        if config.policy.value == "reward_model":
            owner = plugins.owners["combine_rm"]
            yield (
                f"policy.value: no reward model is trained, since the reward is of plugin '{owner}'"
                "; set it to shared or separate"
            )
        return
    if config.reward_model.model is None and config.reward_model.random is None:
        yield "reward_model: has neither model nor random, and no world supplies one"
    labeller = plugins.owners.get("label")
    needs_gold = labeller and getattr(plugins[labeller].instance, "needs_gold", False)
    if needs_gold and config.gold is None:
        yield (
            f"labels come from plugin '{labeller}', which needs a gold model; set gold.model, or "
            "list a labeller that needs none"
        )


def prompts_of(config: RunConfig, plugins: Plugins) -> PromptsSection:
    """The settings of the prompts; a run without labels asks for no prompts of pairs."""
    if plugins.learn_rewards:
        return config.prompts
    return config.prompts.model_copy(update={"preference": 0, "held_out": 0})


def _missing(config: RunConfig, plugins: Plugins) -> Iterator[str]:
    """Models, data and functions that should lie here and do not."""
    for key in ("policy", "reward_model", "gold"):
        section: ModelSection | None = getattr(config, key)
        if section is None:
            continue
        model = section.model or ""
        if model[:1] in PATHS and not os.path.isdir(model):
            yield f"{key}.model: no folder '{model}'"
        if section.random is not None:
            kind = str(section.random["model_type"])
            if kind not in CONFIG_MAPPING:
                hint = closest(kind, CONFIG_MAPPING)
                yield f"{key}.random.model_type: transformers has no model '{kind}'{hint}"
    known = PromptSet([], [], [])  # what functions are tried on: they may not take any prompt
    try:
        if looks_local(config.prompts.data or ""):
            known = split_prompts(prompts_of(config, plugins))["evaluation"].first(2)
    except UserError as error:
        yield str(error)
    attempts: list[Callable[[], Any]] = []
    if config.sft is not None and looks_local(config.sft.data):
        attempts.append(lambda: prompt_answers(config))
    if (gold := config.gold) is not None and gold.function is not None:
        attempts.append(partial(try_gold, gold, known.texts, known.columns))
    for one in plugins.active:
        for name in getattr(one.instance, "functions", ()):
            key = f"plugins.{one.name}.functions"
            attempts.append(partial(try_function, name, key, known.texts, known.columns))
    for attempt in attempts:
        try:
            attempt()
        except UserError as error:
            yield str(error)


def looks_local(data: str) -> bool:
    """Whether a data set is a path rather than a hub name."""
    return bool(Path(data).suffix) or data[:1] in PATHS or os.path.exists(data)


class Session(AbstractContextManager["Session"]):
    """One process's hold on a run. A context manager: the folder is let go at the end."""

    def __init__(
        self, config: RunConfig, plugins: Plugins, out: Path, watch: Sequence[Watcher] = ()
    ) -> None:
        self.config = config
        self.plugins = plugins
        self.watch = watch
        self.iteration = 0
        self.directory = RunDirectory(out, config, plugins)
        try:
            self._load()
        except BaseException:
            self.directory.close()
            raise

    def _load(self) -> None:
        config = self.config
        hf_logging.set_verbosity_error()  # bars and load reports drown a run's own lines
        hf_logging.disable_progress_bar()
        disable_progress_bars()
        self.backend = Backend(config.backend)
        self.draws = Draws(config.seed)
        with self.draws.forked("gold weights"):
            self.gold = self._gold()
        self.tell(
            "run_started",
            config=config,
            plugins=self.plugins,
            directory=self.directory.path,
            resumed=self.directory.resumed,
            backend=str(self.backend),
        )
        if self.plugins.learn_rewards:
            _ = self.initial_reward_model  # one that cannot be loaded ends the run before the SFT
        self.sft_policy = self.directory.artefact("sft", self._sft, Policy.save, self.load_policy)
        stop_token(self.tokenizer, config.generation)
        self.sft = PolicyHandle("sft", lambda: self.sft_policy)
        settings = prompts_of(config, self.plugins)
        self.prompts: PromptSplits = load_prompts(settings, self.tokenizer)
        check_length(self.sft_policy.lm, self.prompts.longest, config.generation)
        if config.policy.value == "reward_model":  # it reads all of the policy's tokens
            body = self.initial_reward_model.model
            check_length(body, self.prompts.longest, config.generation, "reward model")
        self.ctx = Context(
            config,
            self.draws,
            self.backend.device,
            self.sft,
            self.gold,
            self.plugins.readers,
            directory=self.directory.path,
            autocast=self.backend.autocast,
            logged=self.plugins.logged,
            columns=self._columns,
        )
        self.ruler = self.directory.artefact("ruler", self._ruler, Ruler.save, self._load_ruler)
        self.ctx = self.ctx.at(ruler=self.ruler)

    def _gold(self) -> Scorer | None:
        if self.config.gold is None:
            return None
        device = self.backend.device
        return load_gold(self.config.gold, device, self._columns)

    def _columns(self, asked: Samples | Texts) -> dict[str, list[Any]]:
        """Further columns of the prompts file, an entry for each prompt or sample."""
        return self.prompts.columns(asked.prompts if isinstance(asked, Samples) else asked)

    def __exit__(self, *_: object) -> None:
        self.directory.close()

    @property
    def tokenizer(self) -> Any:
        """The policy's."""
        return self.sft_policy.tokenizer

    @cached_property
    def initial_reward_model(self) -> RewardModel:
        """R_init: every iteration's reward models start from this body."""
        with self.draws.forked("reward model weights"):
            model = RewardModel.load(
                self.config.reward_model,
                bool(self.plugins.need("lm_head")),
                readers=self.plugins.readers,
            )
        known = model.tokenizer.get_vocab()
        model.stop = known.get(self.config.generation.stop, model.stop)
        return model.to(self.backend.device)

    def _ruler(self) -> Ruler:
        """SFT responses to the evaluation prompts and to as many RL prompts, with their golds."""
        made = {
            name: self.ctx.sample(self.sft_policy, prompts, f"ruler {name}")
            for name, prompts in self._ruler_prompts.items()
        }
        golds = [self.ctx.gold_scores(samples) for samples in made.values()]
        return Ruler(**made, gold=golds[0], rl_gold=golds[1])

    def _load_ruler(self, folder: Path) -> Ruler:
        texts = {name: prompts.texts for name, prompts in self._ruler_prompts.items()}
        return Ruler.load(folder, self.tokenizer, self.backend.device, texts)

    @property
    def _ruler_prompts(self) -> dict[str, PromptSet]:
        splits = self.prompts
        return {"evaluation": splits.evaluation, "rl": splits.rl.first(len(splits.evaluation))}

    def _sft(self) -> Policy:
        with self.draws.forked("policy weights"):
            policy = Policy.load(self.config.policy, self.config.generation.temperature)
        policy.to(self.backend.device)
        same, key = self.config.policy.value == "reward_model", vocabulary_key(policy.tokenizer)
        if same and key != self.initial_reward_model.key:
            raise UserError(
                "policy.value: the value model cannot start from the reward model, whose tokenizer "
                "is not the policy's; give both the same, or set it to separate"
            )
        if self.config.sft is None:
            return policy
        self.tell("stage_started", stage="sft", total=0)
        return train_sft(policy, self.config, self.backend)

    def load_policy(self, folder: Path) -> Policy:
        """A policy of this run, on its device."""
        temperature = self.config.generation.temperature
        return Policy.load_checkpoint(folder, temperature).to(self.backend.device)

    def begin(self, iteration: int, policies: PolicyHistory) -> None:
        """Enter an iteration; ``policies`` are those of the iterations before."""
        self.iteration = iteration
        draws = Draws(self.config.seed, iteration)
        self.ctx = self.ctx.at(iteration=iteration, draws=draws, policies=policies)

    def end(self) -> None:
        """Leave an iteration."""
        self.directory.drop_checkpoints(self.name("policy"))
        rows = self.directory.metrics.rows()
        mine = [r for r in rows if r["kind"] == "iteration" and r["iteration"] == self.iteration]
        self.tell("iteration_finished", row=mine[-1])

    def stage(self, stage: str, make: Make[T], save: Save[T], load: Load[T]) -> T:
        """A stage's result, made once an iteration; who watches is told."""
        name = self.name(stage)
        started = time.perf_counter()
        reused = (self.directory.path / name).exists()
        made = self.directory.artefact(name, make, save, load)
        seconds = time.perf_counter() - started
        self.tell("stage_finished", stage=stage, seconds=seconds, reused=reused)
        return made

    def handle(self, name: str) -> PolicyHandle:
        """A policy of this run by its name; weights load when asked."""
        if name == "sft":
            return self.sft
        return PolicyHandle(name, lambda: self.load_policy(self.directory.path / name))

    def name(self, stage: str) -> str:
        """``iteration-k/stage``."""
        return f"iteration-{self.iteration}/{stage}"

    def cached(self, name: str, make: Callable[[], Dataset]) -> Dataset:
        """A plugin's data set, made once an iteration."""
        with self.plugins.aside():  # what waits for the stage's own row stays there, cached or not
            return self.directory.cached(self.name(f"cache-{name}"), make, save_data, load_data)

    def log(self, kind: str, **row: Any) -> dict[str, Any]:
        """One line of metrics.jsonl, as it is written; progress is told to who watches."""
        row = {"kind": kind, "iteration": self.iteration, **row, **self.ctx.logged}
        self.ctx.logged.clear()
        self.directory.metrics.write(row)
        if kind in {"reward_model", "policy"}:
            self.tell("stage_advanced", stage=kind, step=row["step"], row=row)
        if kind in TOLD:
            self.tell(TOLD[kind], step=row["step"], row=row)
        return row

    def log_actions(self, stage: str) -> None:
        """What the plugins did since the last row, as a row of its own."""
        self.log("actions", stage=stage, actions=self.plugins.taken_actions())

    def tell(self, kind: EventKind, step: int = 0, **data: Any) -> None:
        """Tell the watchers and every plugin with ``observe``."""
        event = Event(kind, self.iteration, step, data)
        for watcher in self.watch:
            watcher(event)
        for _ in self.plugins.each("observe", event=event):
            pass
