"""The contract's mechanism, on real installed packages: each fault is one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import indent
from types import FunctionType
from typing import Any

import pytest

import ostinato
from distributions import STATEFUL, write_distribution
from kill_runs import MICRO
from ostinato.config.errors import UserError
from ostinato.contract import hookspecs
from ostinato.contract.activation import declared
from ostinato.contract.discovery import default_owners, discover, hooks_of, summary_of
from ostinato.contract.hookspecs import KINDS
from ostinato.contract.plugins import activate

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package: its name, its source, and ``plugin name = object`` entry points."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    made: list[str] = []

    def write(name: str, source: str, **plugins: str) -> None:
        write_distribution(site, name, source, plugins)
        made.append(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


def package(body: str, before: str = "") -> str:
    """The source of a plugin class ``P`` with this body."""
    head = f"""\
from pydantic import BaseModel, ConfigDict, Field
from ostinato import hookimpl
{before}

class P:
    "Does little. More follows."
"""
    return head + indent(body, "    ")


OK = "@hookimpl\ndef observe(self, event): pass\n"
SETTINGS = """\
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    threshold: float = Field(0.5, gt=0, description="x")
    mode: str = Field("a", description="x")
"""


def complaint(*wanted: str | tuple[str, dict[str, Any]]) -> str:
    """What activation says."""
    with pytest.raises(UserError) as caught:
        activate([(w, {}) if isinstance(w, str) else w for w in wanted], "run.yaml")
    return str(caught.value)


BROKEN = {
    "import error": (
        package(OK, "import no_such_module"),
        "plugin 'bad' of badly 1.0 cannot be imported from badly:P: ModuleNotFoundError: "
        "No module named 'no_such_module'",
    ),
    "it ends the program when imported": (
        package(OK, "raise SystemExit(3)"),
        "plugin 'bad' of badly 1.0 cannot be imported from badly:P: SystemExit: 3",
    ),
    "syntax error": ("class P(:", "cannot be imported from badly:P: SyntaxError: invalid syntax"),
    "no such object": ("", "cannot be imported from badly:P: AttributeError: "),
    "another edition of the contract": (
        package("contract = '1'\n@hookimpl\ndef rm_losss(self, batch): pass"),
        "plugin 'bad' of badly 1.0: it is written for edition 1 of the contract, and this Ostinato "
        "has edition 2; install versions of the two that go together",
    ),
    "an instance": (
        package(OK) + "\nP = P()",
        "plugin 'bad' of badly 1.0: badly:P is a P, expected a class with hook methods",
    ),
    "a function": ("def P(): pass", "badly:P is a function, expected a class with hook methods"),
    "a module": ("import json as P", "badly:P is a module, expected a class with hook methods"),
    "a misspelt hook": (
        package("@hookimpl\ndef rm_losss(self, batch): pass"),
        "plugin 'bad' of badly 1.0: 'rm_losss' is not a hook of Ostinato; did you mean 'rm_loss'?",
    ),
    "a hook without its mark": (
        package(OK + "\ndef rm_loss(self, batch): pass"),
        "plugin 'bad' of badly 1.0: its method 'rm_loss' lacks @ostinato.hookimpl",
    ),
    "an empty plugin": (package("x = 1"), "plugin 'bad' of badly 1.0: it has no hook method"),
    "an unknown argument": (
        package("@hookimpl\ndef rm_loss(self, btach, ctx): pass"),
        "plugin 'bad' of badly 1.0: hook 'rm_loss' has no argument 'btach'; did you mean 'batch'?",
    ),
    "an unknown argument of a static hook": (
        package("@staticmethod\n@hookimpl\ndef rm_loss(btach): pass"),
        "hook 'rm_loss' has no argument 'btach'; did you mean 'batch'?",
    ),
    "an argument that would never be given": (
        package("@hookimpl\ndef rm_loss(self, batch, ctx=None): pass"),
        "hook 'rm_loss': argument 'ctx=None' should be a plain name without a default",
    ),
    "arguments of any name": (
        package("@hookimpl\ndef rm_loss(self, **given): pass"),
        "hook 'rm_loss': argument '**given' should be a plain name without a default",
    ),
    "an order of its own": (
        package("@hookimpl(tryfirst=True)\ndef rm_loss(self, batch): pass"),
        "hook 'rm_loss': @ostinato.hookimpl takes no options; the run file gives the order",
    ),
    "a Config that is no model": (
        package("class Config:\n    x = 1\n" + OK),
        "plugin 'bad' of badly 1.0: its Config is not a pydantic BaseModel",
    ),
    "a Config that lets misspelt keys pass": (
        package("class Config(BaseModel):\n    x: int = 1\n" + OK),
        "plugin 'bad' of badly 1.0: its Config lets unknown keys pass; "
        "give it ConfigDict(extra='forbid')",
    ),
    "__init__ raises": (
        package("def __init__(self): raise RuntimeError('no luck')\n" + OK),
        "plugin 'bad' of badly 1.0 cannot be made: RuntimeError: no luck",
    ),
    "__init__ wants arguments": (
        package("def __init__(self, size): pass\n" + OK),
        "plugin 'bad' of badly 1.0 cannot be made: TypeError: ",
    ),
    "a check of something else": (
        package("def check_run(self, plugin, config): pass\n" + OK),
        "plugin 'bad' of badly 1.0: check_run has no argument 'plugin'; did you mean 'plugins'?",
    ),
    "an unknown need": (
        package("needs = {'veiws': 2}\n" + OK),
        "plugin 'bad' of badly 1.0 needs 'veiws', which is unknown; did you mean 'views'?",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_one_sentence(fault: str, install: Install) -> None:
    source, expected = BROKEN[fault]
    install("badly", source, bad="P")
    said = complaint("bad")
    assert expected in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("edition", ["'2'", "2"])
def test_a_plugin_may_say_which_edition_it_is_written_for(edition: str, install: Install) -> None:
    install("good", package(f"contract = {edition}\n" + OK), good="P")
    assert ostinato.CONTRACT == "2"
    assert "good" in {a.name for a in activate([("good", {})], "run.yaml").active}


def test_who_uses_what_will_be_removed_is_warned_where_it_stands(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/contract.md promises it: of a hook, and of an argument."""
    gone = FutureWarning("hook 'observe' leaves with 0.9; see docs/contract.md")
    also = FutureWarning("argument 'kl' leaves with 0.9; see docs/contract.md")
    for hook, leaving in (
        ("observe", {"warn_on_impl": gone}),
        ("kl_coefficient", {"warn_on_impl_args": {"kl": also}}),
    ):
        spec = getattr(hookspecs, hook)
        copied = FunctionType(spec.__code__, spec.__globals__, hook)
        monkeypatch.setattr(hookspecs, hook, hookspecs._hook(KINDS[hook], **leaving)(copied))
    install("old", package(OK + "@hookimpl\ndef kl_coefficient(self, kl): return 1.0"), old="P")
    with pytest.warns(FutureWarning) as caught:
        activate([("old", {})], "run.yaml")
    assert [str(w.message) for w in caught] == [str(also), str(gone)]
    assert {(Path(w.filename).name, w.lineno) for w in caught} == {("old.py", 7), ("old.py", 9)}


def test_a_module_as_entry_point(install: Install) -> None:
    install("badly", package(OK), bad="")
    assert "badly is a module, expected a class with hook methods" in complaint("bad")


def test_every_fault_of_a_class_is_said_at_once(install: Install) -> None:
    body = "@hookimpl\ndef rm_losss(self): pass\n@hookimpl\ndef evaluate(self, cxt): pass"
    install("badly", package(body), bad="P")
    said = complaint("bad").splitlines()
    assert len(said) == 2
    assert "rm_losss" in said[1]
    assert "'cxt'; did you mean 'ctx'?" in said[0]


def test_an_unknown_plugin_has_its_closest_name() -> None:
    assert complaint("worst_csae") == (
        "run.yaml: no plugin 'worst_csae' is installed; did you mean 'worst_case'?"
    )


def test_a_plugin_with_no_near_name_is_no_long_list() -> None:
    assert complaint("quux") == ("run.yaml: no plugin 'quux' is installed; see `ostinato plugins`")


def test_two_packages_with_one_name_are_both_named(install: Install) -> None:
    install("firstly", package(OK), same="P")
    install("secondly", package(OK), same="P")
    said = complaint("same")
    assert said.startswith("run.yaml: plugin name 'same' is claimed by ")
    assert "firstly 1.0" in said
    assert "secondly 1.0" in said
    assert "firstly" not in sys.modules


def test_bad_settings_are_all_said_with_their_keys(install: Install) -> None:
    install("good", package(SETTINGS + OK), good="P")
    said = complaint(("good", {"treshold": 1, "mode": 3, "threshold": -1})).splitlines()
    assert said == [
        "run.yaml: plugins.good.threshold: input should be greater than 0, got -1",
        "run.yaml: plugins.good.mode: input should be a valid string, got 3",
        "run.yaml: plugins.good.treshold: unknown key; did you mean 'threshold'?",
    ]


def test_numbers_that_are_none_are_refused(install: Install) -> None:
    install("good", package(SETTINGS + OK), good="P")
    for value, said in ((True, "expected a number, got true"), (float("inf"), "finite number, go")):
        one = complaint(("good", {"threshold": value}))
        assert one.startswith("run.yaml: plugins.good.threshold: expected a ")
        assert said in one


def test_a_plugin_that_cannot_be_made_is_not_missed_by_the_others() -> None:
    """What its column's consumer lacks is not a second fault."""
    said = complaint(("strength", {"models": 0}), "flip")
    assert said == (
        "run.yaml: plugins.strength.models: input should be greater than or equal to 1, got 0"
    )


def test_settings_for_a_plugin_that_has_none(install: Install) -> None:
    install("good", package(OK), good="P")
    said = complaint(("good", {"threshold": 1}))
    assert said == "run.yaml: plugins.good has no settings, but got threshold"


def test_settings_reach_the_plugin_before_init(install: Install) -> None:
    init = "def __init__(self): self.double = 2 * self.config.threshold\n"
    install("good", package(init + SETTINGS + OK), good="P")
    made = activate([("good", {"threshold": 4})], "run.yaml")["good"]
    assert made.instance.double == 8
    assert made.settings == {"threshold": 4.0, "mode": "a"}


def test_two_owners_of_one_hook_are_both_named() -> None:
    assert complaint("concat", "take_last_data") == (
        "run.yaml: hook 'combine_data' has one owner, but 'concat' and 'take_last_data' claim it"
    )


def test_two_owners_of_several_hooks_are_one_sentence(install: Install) -> None:
    other = "\n".join(f"@hookimpl\ndef {hook}(self): pass" for hook in ("train_rm", "combine_rm"))
    install("good", package(other), good="P")
    install("fine", package(other + "\n" + "@hookimpl\ndef label(self): pass"), fine="P")
    assert complaint("good", "fine") == (
        "run.yaml: hooks 'combine_rm' and 'train_rm' have one owner each, but 'good' and 'fine' "
        "claim them"
    )


def test_a_plugin_listed_twice() -> None:
    assert complaint("concat", "worst_case", "concat") == (
        "run.yaml: plugin 'concat' is listed twice"
    )


def test_complaints_of_all_plugins_come_at_once(install: Install) -> None:
    install("badly", package("x = 1"), bad="P")
    said = complaint("concatt", "bad", "concat", "take_last_data").splitlines()
    assert len(said) == 3
    assert "concatt" in said[0]
    assert "no hook method" in said[1]
    assert "combine_data" in said[2]


def test_what_the_run_does_not_name_disturbs_nothing(install: Install) -> None:
    install("badly", package(OK, "raise RuntimeError"), bad="P", ppo="P", concat="P")
    write = "[ostinato.defaults]\ncombine_data = badly:P\nlabel = badly:Q\n"
    info = next(iter(entry_points(group="ostinato", name="bad"))).dist
    assert info is not None
    path = Path(str(info.locate_file("badly-1.0.dist-info/entry_points.txt")))
    path.write_text(path.read_text() + write)
    assert [claim.distribution for claim in discover()["bad"]] == ["badly"]
    assert len(discover()["concat"]) == 2
    plugins = activate([("worst_case", {})], "run.yaml")
    assert plugins.owners["policy_algorithm"] == "ppo"
    assert plugins["ppo"].found.distribution == "ostinato"
    assert plugins["concat"].found.distribution == "ostinato"
    assert "badly" not in sys.modules


def test_defaults_own_what_nobody_owns_and_no_more() -> None:
    defaults = default_owners()
    ours = {"choose_prompts", "draw_responses", "train_policy", "train_rm"}  # the core's own way
    assert set(defaults) == {h for h, k in KINDS.items() if k == "one"} - ours
    alone = activate([], "run.yaml")
    assert alone.owners == defaults
    assert sorted(a.name for a in alone.active) == sorted(set(defaults.values()))
    chosen = activate([("take_last_data", {}), ("worst_case", {})], "run.yaml")
    names = [a.name for a in chosen.active]
    assert names[:2] == ["take_last_data", "worst_case"]
    assert "concat" not in names
    assert "take_last_rm" not in names
    assert chosen.owners["combine_data"] == "take_last_data"
    assert chosen.owners["label"] == "gold_labels"


def test_a_plugin_that_only_observes(install: Install) -> None:
    body = "events = []\n@hookimpl\ndef observe(self, event): self.events.append(event)"
    install("watcher", package(body), watch="P")
    plugins = activate([("watch", {})], "run.yaml")
    assert list(plugins.each("observe", event="e")) == [("watch", None)]
    assert plugins["watch"].instance.events == ["e"]
    assert "watch" not in plugins.owners.values()


CHAIN = """
    from dataclasses import replace
    from ostinato import hookimpl

    class Plus:
        @hookimpl
        def reward_transform(self, rewards):
            return rewards + "+"

    class Stars:
        @hookimpl
        def reward_transform(self, ctx, rewards):
            return rewards + ctx

    class Nothing:
        @hookimpl
        def reward_transform(self, rewards):
            return rewards

    class Fails:
        @hookimpl
        def reward_transform(self):
            raise KeyError("oh")

    class Forgets:
        @hookimpl
        def reward_transform(self):
            pass
    """


def chain(*names: str) -> tuple[Any, dict[str, float]]:
    """The chain's answer to "r" and the magnitudes, here numbers of characters added."""
    plugins = activate([(name, {}) for name in names], "run.yaml")
    seen = []

    def check(name: str, before: str, after: str) -> float:
        seen.append(name)
        return len(after) - len(before)

    made = plugins.chain("reward_transform", "rewards", "r", check, ctx="**")
    assert seen == [name for name in names if name != "nothing"]  # who has answered another text
    return made, plugins.taken_actions()


def test_a_chain_goes_in_the_run_files_order_and_records_what_each_did(install: Install) -> None:
    objects = {"plus": "Plus", "stars": "Stars", "nothing": "Nothing"}
    install("links", CHAIN, **objects)
    assert chain("plus", "stars", "nothing")[0] == "r+**"
    assert chain("stars", "nothing", "plus") == (
        "r**+",
        {
            "stars.reward_transform": 2.0,
            "nothing.reward_transform": 0.0,
            "plus.reward_transform": 1.0,
        },
    )


def test_an_error_inside_a_hook_names_plugin_and_hook(install: Install) -> None:
    install("links", CHAIN, fails="Fails", plus="Plus", forgets="Forgets")
    with pytest.raises(KeyError) as caught:
        chain("plus", "fails")
    assert caught.value.__notes__[0].startswith("in plugin 'fails', hook 'reward_transform' (")
    with pytest.raises(UserError, match="plugin 'forgets': hook 'reward_transform' answered None"):
        chain("forgets")


def test_actions_are_means_and_can_be_laid_aside() -> None:
    plugins = activate([], "run.yaml")
    plugins.acted("ppo", "policy_loss", 1)
    plugins.logged["x"] = 1.0
    with plugins.aside():
        plugins.acted("ppo", "policy_loss", 100)
        plugins.logged["y"] = 2.0
    plugins.acted("ppo", "policy_loss", 2)
    assert plugins.logged == {"x": 1.0}
    assert plugins.taken_actions() == {"ppo.policy_loss": 1.5}
    assert plugins.taken_actions() == {}


def test_state_goes_and_comes_with_what_waits_for_a_row(install: Install) -> None:
    install("drift_plugin", STATEFUL, drift="Drift")
    first = activate([("drift", {})], "run.yaml")
    assert first.one("kl_coefficient", kl=1.0, step=0, ctx=None) == pytest.approx(0.033)
    first.acted("drift", "kl_coefficient", 7)
    first.logged["y"] = 2.0
    second = activate([("drift", {})], "run.yaml")
    second.acted("ppo", "policy_loss", 9)  # by a hook that a resumed run calls again
    second.load_state(*first.state())
    assert second.one("kl_coefficient", kl=None, step=1, ctx=None) == pytest.approx(0.033)
    assert second.taken_actions() == {"drift.kl_coefficient": 7.0}
    assert second.logged == {"y": 2.0}


def test_state_that_json_cannot_hold_names_the_plugin(install: Install) -> None:
    install("badly", package(OK + "\ndef state_dict(self): return {'x': {1, 2}}"), bad="P")
    plugins = activate([("bad", {})], "run.yaml")
    with pytest.raises(UserError, match=r"plugin 'bad' of badly 1\.0: its state_dict\(\) should"):
        plugins.state()


COLUMNS = """
    from ostinato import hookimpl

    class Gives:
        provides = ("votes",)
        @hookimpl
        def refine_data(self, data):
            return data

    class Takes:
        consumes = ("votes",)
        @hookimpl
        def refine_data(self, data):
            return data

    class Loss:
        consumes = ("votes",)
        @hookimpl
        def preference_loss(self, batch):
            return batch
    """


def test_columns_that_nothing_provides_or_consumes(install: Install) -> None:
    install("columns", COLUMNS, gives="Gives", takes="Takes", loss="Loss")
    late = "run.yaml: plugin 'takes' consumes column 'votes', which no plugin listed before it"
    assert complaint("takes", "gives") == f"{late} provides"
    assert complaint("loss") == (
        "run.yaml: plugin 'loss' consumes column 'votes', which no plugin provides"
    )
    assert complaint("gives") == (
        "run.yaml: plugin 'gives' provides column 'votes', which nothing consumes"
    )
    assert activate([("loss", {}), ("gives", {})], "run.yaml").owners["preference_loss"] == "loss"


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_need_wins(install: Install, order: int) -> None:
    needs = "@property\ndef needs(self): return {'views': 3, 'dropout': 0.2}\n"
    install("needy", package(needs + OK), needy="P")
    plugins = activate([("needy", {}), ("simcse", {"dropout": 0.2})][::order], "run.yaml")
    assert plugins.need("views") == 3
    assert plugins.need("dropout") == 0.2
    assert plugins.need("members") is None


def test_a_reward_model_has_one_dropout(install: Install) -> None:
    """The larger one would silently be another method than the other plugin's settings say."""
    needs = "@property\ndef needs(self): return {'dropout': 0.2}\n"
    install("needy", package(needs + OK), needy="P")
    assert complaint("simcse", "needy") == (
        "run.yaml: plugin 'simcse' needs dropout 0.1 and plugin 'needy' 0.2, but a reward model "
        "has one; set them alike"
    )


NOTHING = """
    from ostinato import hookimpl

    class Nothing:
        @hookimpl
        def reward_transform(self, rewards):
            return rewards

        @hookimpl
        def refine_data(self, data):
            return data

        @hookimpl
        def rm_loss(self):
            return {}

        @hookimpl
        def meta_update(self):
            return {}

        @hookimpl
        def policy_loss(self):
            return {}

        @hookimpl
        def evaluate(self):
            return {}
    """


def test_a_run_shows_what_each_plugin_did(install: Install, tmp_path: Path) -> None:
    install("nothing_plugin", NOTHING, nothing="Nothing")
    listed = "liti, sample_data, strength, {flip: {lowest: 0.5}}, simcse, metarm, nothing"
    done = ostinato.run("toy", tmp_path / "run", [*MICRO, f"plugins=[{listed}]"])
    seen: dict[str, list[float]] = {}
    for row in done.metrics:
        for key, magnitude in row.get("actions", {}).items():
            seen.setdefault(key, []).append(magnitude)
    idle = {key: values for key, values in seen.items() if not any(values)}
    assert idle.keys() - {"take_last_rm.combine_rm"} == {
        f"nothing.{hook}"
        for hook in (
            "reward_transform",
            "refine_data",
            "rm_loss",
            "meta_update",
            "policy_loss",
            "evaluate",
        )
    }
    names = {key.partition(".")[0] for key in seen.keys() - idle.keys()}
    others = "liti sample_data strength flip simcse metarm gold_labels"
    assert names == {*others.split(), "bradley_terry", "ppo", "fixed_kl"}
    assert idle["take_last_rm.combine_rm"] == [0.0, 0.0]  # R_k is R~_k
    assert all(value >= 0 for values in seen.values() for value in values)


@pytest.mark.parametrize("name", sorted(discover()))
def test_every_installed_plugin_keeps_the_contract(name: str) -> None:
    active = declared(name)
    assert set(active.hooks) <= set(KINDS)
    assert hooks_of(type(active.instance)) == active.hooks
    assert summary_of(type(active.instance)).endswith(".")
    for key, value in (
        getattr(type(active.instance), "Config", type("", (), {}))
        .__dict__.get("__pydantic_fields__", {})
        .items()
    ):
        assert value.description, f"{name}.{key}"
