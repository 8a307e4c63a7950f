"""What a person sees of a run, from the events alone."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ostinato import load_config
from ostinato.contract.events import Event
from ostinato.contract.plugins import activate
from ostinato.report.tables import ITERATION
from ostinato.terminal import console as console_module
from ostinato.terminal.console import RunConsole, duration, iteration_table
from ostinato.terminal.printing import Screen, show

SAMPLES = {
    0: [{"prompt": "the soup :", "response": "it was bland .", "gold": -1.0, "proxy": -2.0}],
    4: [{"prompt": "the soup :", "response": "it was tasty .", "gold": 1.5, "proxy": 1.25}],
}


@pytest.fixture(autouse=True)
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run of the events has written."""
    monkeypatch.chdir(tmp_path)
    Path("runs/x").mkdir(parents=True)
    rows = [
        {"kind": "combined", "iteration": 1, "actions": {"worst_case.combine_rm": 9.0}},
        {"kind": "combined", "iteration": 2, "actions": {"worst_case.combine_rm": 0.5}},
        {"kind": "policy", "iteration": 2, "actions": {"worst_case.combine_rm": 1.0, "ppo.x": 7}},
        {"kind": "iteration", "iteration": 2},
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    Path("runs/x/metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def evaluation(step: int, gold: float | None) -> dict[str, Any]:
    missing = gold is None
    return {
        "gold_sft_std": gold,
        "proxy_sft_std": 0.5 + step,
        "gold_wins": None if gold is None else 0.5 + gold / 5,
        "proxy_wins": 0.5 + step / 10,
        "gap": None if missing else 0.25,
        "gap_se": None if missing else 0.031,
        "gap_latest": None if missing else 0.5,
        "kl": 1.5 * step,
        "mmd": None if missing else 0.125,
        "spearman": None if missing else 0.625,
        "length": 12.34,
        "samples": [{**s, "gold": None if missing else s["gold"]} for s in SAMPLES[step]],
    }


def summary(k: int, gold: float | None) -> dict[str, Any]:
    row = evaluation(4, gold)
    return {"kind": "iteration", "iteration": k, **row, "peak_gold": gold, "accuracy": 0.756}


def events(gold: float | None = 0.75, resumed: bool = False) -> Iterator[Event]:
    config = load_config("toy", ["iterations=2", "rl.rollouts=4", "plugins=[worst_case]"])
    yield Event(
        "run_started",
        data={
            "config": config,
            "plugins": activate(config.wanted_plugins, "toy"),
            "directory": Path("runs/x"),
            "resumed": resumed,
            "backend": "cpu, fp32, 1 thread",
        },
    )
    rows = []
    for k in (1, 2):
        for stage in ("preferences", "reward_model", "policy"):
            yield Event("stage_started", k, data={"stage": stage, "total": 0})
            if stage == "reward_model":
                for step in range(1, 9):
                    row = {"step": step, "total": 8, "member": 0, "purpose": "reward model"}
                    yield Event("stage_advanced", k, step, {"stage": stage, "row": row})
            if stage == "policy":
                yield Event("evaluated", k, 0, {"row": evaluation(0, gold and -gold)})
                for step in range(1, 5):
                    row = {"step": step, "total": 4, "name": "policy"}
                    yield Event("stage_advanced", k, step, {"stage": stage, "row": row})
                yield Event("evaluated", k, 4, {"row": evaluation(4, gold)})
            done = {"stage": stage, "seconds": 3.0, "reused": False}
            yield Event("stage_finished", k, data=done)
        rows.append(summary(k, gold and gold * k))
        yield Event("iteration_finished", k, data={"row": rows[-1]})
    yield Event("run_finished", 2, data={"directory": Path("runs/x"), "rows": rows})


def shown(
    width: int = 80, terminal: bool = False, overrides: Sequence[str] = (), **settings: Any
) -> str:
    out = Screen(
        file=io.StringIO(),
        width=width,
        height=200,
        force_terminal=terminal,
        force_interactive=terminal,
        color_system="truecolor" if terminal else None,
    )
    with RunConsole("toy", out, overrides) as watch:
        for event in events(**settings):
            watch(event)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_brief_comes_first() -> None:
    lines = squeezed(shown())
    assert lines[1].startswith("== Ostinato")
    brief = lines[: lines.index("== Iteration 1 of 2")]
    for line in (
        "combine_data concat (default)",
        "combine_rm worst_case",
        "policy policy of world 'toy'",
        "runs on cpu, fp32, 1 thread",
        "results in runs/x (a new run)",
        "iterations 2 of 4 rollouts",
    ):
        assert line in brief
    assert any(line.startswith("spearman whether the proxy") for line in brief)
    assert "results in runs/x (goes on with the run there)" in squeezed(shown(resumed=True))


def test_what_each_listed_method_did_in_the_mean_of_the_last_iteration() -> None:
    lines = squeezed(shown())
    place = lines.index("What each method did (magnitudes, mean of the last iteration)")
    assert lines[place + 1 : place + 3] == ["worst_case combine_rm 0.75", ""]


def test_evaluations_and_tables() -> None:
    lines = squeezed(shown())
    assert lines.count("rollout gold proxy gold wins proxy wins gap KL length") == 2
    assert "0 -0.75 +0.50 35% 50% +0.25 0.00 12.3" in lines
    assert "4 +0.75 +4.50 65% 90% +0.25 6.00 12.3" in lines
    # the table of iteration 1, and both rows in the last one
    assert lines.count("1 +0.75 +0.75 65% 90% +0.25 ±0.03 +0.50 6.00 0.62 76%") == 2
    assert lines.count("2 +1.50 +1.50 80% 90% +0.25 ±0.03 +0.50 6.00 0.62 76%") == 1
    assert "Training the reward model: 8 updates in 3.0 s" in lines
    text = " ".join(lines)
    assert (
        "From iteration 1 to 2 gold went from +0.75 to +1.50, gold wins from 65% to 80%, gap from "
        "+0.25 ±0.03 to +0.25 ±0.03." in text
    )
    assert "Saturated" not in text


def test_saturated_wins_are_told() -> None:
    text = " ".join(squeezed(shown(gold=2.45)))  # gold wins 99% in iteration 1, 148% in 2
    assert "Saturated: gold wins above 98% in iteration 1, 2; a gap between shares so near" in text


def test_samples_before_and_after() -> None:
    lines = squeezed(shown())
    place = lines.index("prompt the soup :")
    assert lines[place + 1] == "before gold -1.00 proxy -2.00 it was bland ."
    assert lines[place + 2] == "after gold +1.50 proxy +1.25 it was tasty ."


def test_a_resumed_stage() -> None:
    out = Console(file=io.StringIO(), width=80, highlight=False)
    watch = RunConsole("toy", out)
    for stage in ("preferences", "combined"):
        kept = {"stage": stage, "seconds": 1.0, "reused": True}
        watch(Event("stage_finished", 1, data=kept))
    for _ in range(2):  # neither is the policy before it was optimised
        watch(Event("evaluated", 1, 4, {"row": evaluation(4, 0.5)}))
    watch(Event("iteration_finished", 1, data={"row": summary(1, 0.5)}))
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    assert "  Sampling and labelling pairs: kept from before\n" in text
    assert text.count("kept from before") == 1
    assert "prompt" not in text


def test_without_gold() -> None:
    lines = squeezed(shown(gold=None))
    assert "4 – +4.50 – 90% – 6.00 12.3" in lines
    assert "2 – – – 90% – – 6.00 – 76%" in lines
    assert "after gold – proxy +1.25 it was tasty ." in lines
    assert not any("gold went from" in line for line in lines)


def test_plain_lines_hold_no_control_codes_and_no_bars() -> None:
    text = shown()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert "━" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_it_fits(width: int, terminal: bool) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(width, terminal)).replace("\r", "\n")
    assert max(map(len, text.splitlines())) <= width


def test_wide_numbers_fit_into_80_columns() -> None:
    row = dict.fromkeys((key for _, key, _ in ITERATION), -12.345)
    row |= dict.fromkeys(("gold_wins", "proxy_wins", "accuracy"), 1.0)
    row |= {"gap": -0.987, "gap_se": 0.045, "gap_latest": -0.987, "kl": 123.45, "spearman": -0.91}
    out = Screen(file=io.StringIO(), width=80)
    show(out, iteration_table([{**row, "iteration": 10}]))
    assert isinstance(out.file, io.StringIO)
    above, heads, _, cells = [line for line in squeezed(out.file.getvalue()) if line]
    assert above == "gold proxy"
    assert heads == "iter. gold peak wins wins gap latest KL spearman accuracy"
    assert cells == "10 -12.35 -12.35 100% 100% -0.99 ±0.04 -0.99 123.45 -0.91 100%"


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_that_is_shown_commands_the_terminal(terminal: bool) -> None:
    """Paths, names and texts of others: control characters become visible, markup stays text."""
    out = Screen(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    with RunConsole("\x1b[2J[/b].yaml", out) as watch:
        for event in events():
            if event.kind == "run_started":
                event = Event(
                    event.kind, data={**event.data, "directory": Path("[/i]\x1b[31m\x9b")}
                )
            if "row" in event.data and "name" in event.data["row"]:
                event.data["row"]["name"] = "\x07[/b]"
            watch(event)
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    if terminal:  # what moves the cursor is rich's own
        text = re.sub(r"\x1b\[(\?25[lh]|2K|1A|\d*m)|\r", "", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert "␛[2J[/b].yaml" in text
    assert "[/i]␛[31m\ufffd" in text


def test_bars_on_a_terminal() -> None:
    text = shown(terminal=True)
    assert "━" in text
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again


def test_plain_progress_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    out = Console(file=io.StringIO(), width=80)
    watch = RunConsole("toy", out)
    for step in range(1, 401):
        clock[0] += 1.0
        row = {"step": step, "total": 400, "name": "policy"}
        watch(Event("stage_advanced", 1, step, {"stage": "policy", "row": row}))
    assert isinstance(out.file, io.StringIO)
    said = [int(s) for s in re.findall(r"policy: (\d+) of 400 rollouts", out.file.getvalue())]
    assert said == [61, 100, 161, 200, 261, 300, 361]


def test_several_runs_of_a_plugin_are_told_apart() -> None:
    out = Console(file=io.StringIO(), width=80)
    watch = RunConsole("toy", out)
    watch.spoke = -1e9
    row = {"step": 5, "total": 9, "member": 2, "purpose": "strength vote"}
    watch(Event("stage_advanced", 1, 5, {"stage": "reward_model", "row": row}))
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue() == (
        "  Training the reward model (strength vote), member 3: 5 of 9 updates\n"
    )


def test_what_a_plugin_kept_or_stopped_is_told() -> None:
    rows = [
        ("kept", {"name": "policy", "step": 7, "plugin": "best"}),
        ("stopped", {"name": "run-1", "step": 12, "plugin": "early[/b]"}),
    ]
    file = io.StringIO()
    watch = RunConsole("toy", Console(file=file, width=80))
    for kind, row in rows:
        watch(Event(kind, 1, row["step"], {"row": row}))  # type: ignore[arg-type]
    assert file.getvalue().splitlines() == [
        "  rollout 7: plugin 'best' keeps this policy",
        "  rollout 12 of run-1: plugin 'early[/b]' ends the optimisation",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (119, "119 s"), (150, "2 min"), (7500, "2 h 5 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_to_do_next_keeps_what_the_run_was_told() -> None:
    lines = squeezed(shown(400, overrides=("rl.rollouts=4", "seed=0", "plugins=[worst_case]")))
    assert [line for line in lines if line.startswith("ostinato ")] == [
        "ostinato report runs/x",
        "ostinato run toy --set rl.rollouts=4 --set 'plugins=[worst_case]' --seed 1",
        "ostinato plugins",
    ]
