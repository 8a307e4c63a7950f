"""file_labels: comparisons go out, the run waits, and goes on when people's labels are back."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset
from typer.testing import CliRunner

import ostinato
from kill_runs import Crash, crash_at, differing, outcome
from ostinato import Pause, UserError, load_config
from ostinato.engine import stages
from ostinato.engine.session import check
from ostinato.terminal.cli import app

PEOPLE = Path(__file__).parents[3] / "docs/run-files/people.yaml"
SMALL = [
    "reward_model.updates=3",
    "prompts.preference=16",
    "prompts.held_out=4",
    "prompts.evaluation=8",
    "rl.rollouts=2",
    "rl.rollout_size=8",
    "rl.minibatch=8",
    "evaluation.every=2",
    "checkpoint_every=1",
]


def pairs(count=3, gold=None):
    rows = []
    for n in range(count):
        row = {"prompt": f"p{n}", "first": f"one {n}", "second": f"another\u2028{n}"}
        known = (None, None) if gold is None else gold[n]
        rows.append(row | dict(zip(("first_gold", "second_gold"), known, strict=True)))
    return Dataset.from_list(rows)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Desk:
    """One labelling: ``ask()`` is the hook, ``file`` what it exported."""

    def __init__(self, kit, folder, data=None, /, **settings):
        self.kit = kit.make(("file_labels", settings))
        self.data = pairs() if data is None else data
        self.ctx = self.kit.ctx.at(directory=folder, logged={})
        self.file = folder / "labels" / "iteration-1.jsonl"

    def ask(self):
        return self.kit.plugins.one("label", comparisons=self.data, ctx=self.ctx)

    def pause(self):
        with pytest.raises(Pause) as told:
            self.ask()
        assert "\n" not in str(told.value)
        return str(told.value)

    def refused(self):
        with pytest.raises(UserError) as told:
            self.ask()
        assert "\n" not in str(told.value)
        return str(told.value)

    def fill(self, *labels):
        rows = rows_of(self.file)
        write(self.file, [row | {"label": x} for row, x in zip(rows, labels, strict=True)])


@pytest.fixture(name="desk")
def _desk(kit, tmp_path):
    """A desk with its file exported."""
    desk = Desk(kit, tmp_path)
    desk.pause()
    return desk


# The file


def test_the_export_shows_texts_and_nothing_else(desk):
    lines = desk.file.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(desk.data) == len("".join(lines).splitlines()) * 3  # U+2028 escaped
    for line, row in zip(lines, desk.data, strict=True):
        made = json.loads(line)
        assert list(made) == ["id", "prompt", "first", "second", "label"]
        assert made.pop("label") is None
        made.pop("id")
        assert made == {key: row[key] for key in ("prompt", "first", "second")}
    assert [p.name for p in desk.file.parent.iterdir()] == ["iteration-1.jsonl"]


def test_ids_are_stable_unique_and_of_an_iteration(kit, tmp_path):
    twins = Dataset.from_list([pairs()[0], pairs()[0]])
    ids = []
    for folder, k in (("a", 1), ("b", 1), ("c", 2)):
        desk = Desk(kit, tmp_path / folder, twins)
        desk.ctx = desk.ctx.at(iteration=k)
        desk.pause()
        ids.append([r["id"] for r in rows_of(desk.file.with_name(f"iteration-{k}.jsonl"))])
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 4


def test_labels_become_probabilities(kit, tmp_path):
    data = pairs(6, gold=[(1, 0), (0, 1), (1, 0), (1, 0), (0, 1), (1, 1)])
    desk = Desk(kit, tmp_path, data)
    desk.pause()
    desk.fill("first", "second", "tie", 0.75, 1, 0)
    rows = rows_of(desk.file)
    write(desk.file, reversed([row | {"annotator": "me"} for row in rows]))  # any order, more keys
    before = desk.file.read_bytes(), desk.file.stat().st_mtime_ns
    assert desk.ask() == [1.0, 0.0, 0.5, 0.75, 1.0, 0.0]
    assert (desk.file.read_bytes(), desk.file.stat().st_mtime_ns) == before
    # gold's order: right, right, tied by the label, right, wrong; the last is tied by gold
    assert desk.ctx.logged == {"file_labels/ties": 1 / 6, "file_labels/gold_agreement": 0.7}


def test_without_gold_there_is_no_agreement(desk):
    desk.fill("tie", "first", "tie")
    desk.ask()
    assert desk.ctx.logged == {"file_labels/ties": 2 / 3}


def test_as_an_editor_on_windows_saves_it(desk):
    desk.fill("first", "tie", 0.25)
    text = desk.file.read_text(encoding="utf-8").replace("\n", "\r\n") + "\r\n\r\n"
    desk.file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert desk.ask() == [1.0, 0.5, 0.25]


# Waiting


def test_it_says_what_is_missing_and_how_to_go_on(desk):
    wanted = (
        f"{desk.file}: 3 of the 3 comparisons of iteration 1 wait for a label, the first in line "
        '1; set each label to "first", "second", "tie" or a number in [0, 1], P(first preferred), '
        "and start the run again"
    )
    assert desk.pause() == wanted
    desk.fill("first", None, None)
    kept = desk.file.read_bytes()
    assert "2 of the 3 comparisons of iteration 1 wait for a label, the first in line 2;" in (
        desk.pause()
    )
    assert desk.file.read_bytes() == kept
    write(desk.file, rows_of(desk.file)[:1])
    name = rows_of_export(desk)[1]
    assert f"2 of the 3 comparisons of iteration 1 wait for a label, the first '{name}', which" in (
        desk.pause()
    )


def rows_of_export(desk):
    """The ids, exported anew elsewhere."""
    again = Desk(type(desk.kit), desk.file.parents[1] / "again", desk.data)
    again.pause()
    return [row["id"] for row in rows_of(again.file)]


@pytest.mark.parametrize("point", ["os.fsync", "pathlib.Path.rename"])
def test_a_crash_in_the_export_leaves_no_half_of_a_file(kit, tmp_path, monkeypatch, point):
    desk = Desk(kit, tmp_path)

    def crash(*_):
        raise Crash(point)

    with monkeypatch.context() as patch:
        patch.setattr(point, crash)
        with pytest.raises(Crash):
            desk.ask()
    assert not desk.file.exists()
    desk.pause()
    assert [r["label"] for r in rows_of(desk.file)] == [None] * 3
    assert [p.name for p in desk.file.parent.iterdir()] == ["iteration-1.jsonl"]


def test_a_file_is_never_written_over(kit, tmp_path):
    """Whatever lies in its place, a link to nowhere included, is left as it is."""
    desk = Desk(kit, tmp_path)
    desk.file.parent.mkdir()
    desk.file.symlink_to(tmp_path / "elsewhere.jsonl")
    assert "iteration-1.jsonl: cannot be read: No such file or directory" in desk.refused()
    assert desk.file.is_symlink()
    desk.file.unlink()
    desk.file.write_text("my notes")
    assert "line 1: is not JSON" in desk.refused()
    assert desk.file.read_text() == "my notes"


def test_labels_may_come_back_elsewhere(kit, tmp_path):
    settings = {"folder": str(tmp_path / "out"), "labels": str(tmp_path / "in-{iteration}.jsonl")}
    desk = Desk(kit, tmp_path / "run", **settings)
    exported, back = tmp_path / "out/iteration-1.jsonl", tmp_path / "in-1.jsonl"
    said = desk.pause()
    assert said.startswith(f"{back}: is not there yet; label the 3 comparisons of iteration 1 in ")
    assert f"in {exported} (set each label to " in said
    untouched = exported.read_bytes()
    ids = [row["id"] for row in rows_of(exported)]
    write(back, [{"id": i, "label": "second"} for i in ids[:2]])
    assert f"{back}: 1 of the 3 comparisons" in desk.pause()
    write(back, [{"id": i, "label": "second"} for i in ids])
    assert desk.ask() == [0.0, 0.0, 0.0]
    assert exported.read_bytes() == untouched


# Damage: one sentence that names file, line and key


def changed(number, **values):
    return lambda rows: [r | values if n == number else r for n, r in enumerate(rows, start=1)]


def without(number, key):
    return lambda rows: [
        {k: v for k, v in r.items() if n != number or k != key} for n, r in enumerate(rows, start=1)
    ]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (changed(2, prompt="p3"), "line 2: prompt: was changed since the run wrote it; restore it"),
        (changed(3, second="x"), "line 3: second: was changed since the run wrote it"),
        (changed(2, label="frist"), 'line 2: label: expected "first", "second", "tie" or a number'),
        (changed(1, label=1.5), "line 1: label: expected"),
        (changed(1, label=True), "line 1: label: expected"),
        (changed(1, label=float("nan")), "got NaN"),
        (changed(1, label=["first"]), 'got ["first"]'),
        (without(2, "label"), "line 2: label: is missing"),
        (without(2, "id"), "line 2: id: is missing"),
        (lambda rows: [*rows, rows[0]], "' stands in line 1 already"),
        (
            lambda rows: [rows[0] | {"id": "1-9-00000000"}],
            "id: '1-9-00000000' is none of the run's",
        ),
        (lambda rows: [["first"]], "line 1: is a list, expected a JSON object"),
    ],
)
def test_damage_is_told(desk, damage, words):
    desk.fill("first", "second", "tie")
    write(desk.file, damage(rows_of(desk.file)))
    kept = desk.file.read_bytes()
    said = desk.refused()
    assert said.startswith(f"{desk.file}: line ")
    assert words in said
    assert desk.file.read_bytes() == kept


def test_an_edited_id_has_a_hint(desk):
    rows = rows_of(desk.file)
    name = rows[1]["id"]
    rows[1]["id"] = name[:-1] + ("0" if name[-1] != "0" else "1")
    write(desk.file, rows)
    assert f"is none of the run's; did you mean '{name}'?" in desk.refused()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"id": "1-1', "line 1: is not JSON, one object in one line: "),
        (b'{"id": "x", "label": null, "label": 1}', "line 1: label: stands twice"),
        (b"\n\n[", "line 3: is not JSON"),
        (b"\xff\xfe", "iteration-1.jsonl: is not text in UTF-8"),
    ],
)
def test_what_is_no_file_of_labels(desk, text, words):
    desk.file.write_bytes(text)
    assert words in desk.refused()


def test_labels_of_another_run_are_refused_not_misread(desk):
    desk.fill("first", "first", "first")
    desk.data = desk.data.map(lambda row: {"second": row["second"] + "!"})
    said = desk.refused()
    assert "is none of the run's comparisons; the file is of another run" in said


def test_a_folder_that_cannot_be_written(kit, tmp_path):
    (tmp_path / "labels").write_text("a file")
    said = Desk(kit, tmp_path).refused()
    assert said == f"{tmp_path / 'labels/iteration-1.jsonl'}: cannot be written: File exists"


def test_a_labels_setting_without_the_iteration_is_refused():
    listed = [{"file_labels": {"labels": "back.jsonl"}}]
    config = load_config({"world": "toy", "gold": None, "plugins": listed})
    with pytest.raises(UserError, match=r"plugins.file_labels.labels: expected \{iteration\} in"):
        check(config, "run.yaml")


# Whole runs, without a gold model


def give_labels(folder):
    """Fill in what is missing, as a person does who likes long responses."""
    for path in (folder / "labels").glob("*.jsonl"):
        rows = rows_of(path)
        for row in rows:
            longer = len(row["first"]) - len(row["second"])
            row["label"] = "tie" if longer == 0 else "first" if longer > 0 else "second"
        write(path, rows)


def live(out, crashes=()):
    """Run to the end with a person who labels at each pause; crash at those writes on the way."""
    pauses, crashes = 0, list(crashes)
    while True:
        try:
            with crash_at(crashes.pop(0) if crashes else -1):
                return ostinato.run(PEOPLE, out, SMALL), pauses
        except Pause:
            pauses += 1
            give_labels(out)
        except Crash:
            continue


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory):
    """A run that only ever waited: (its outcome, its folder)."""
    out = tmp_path_factory.mktemp("whole") / "run"
    made, pauses = live(out)
    assert pauses == 2
    assert [row["iteration"] for row in made.iterations] == [1, 2]
    return outcome(out), out


def test_from_the_command_line(whole, tmp_path):
    out = tmp_path / "run"
    sets = [f"--set={setting}" for setting in SMALL]

    def command():
        return CliRunner().invoke(app, ["run", str(PEOPLE), "--out", str(out), *sets])

    for k in (1, 2):
        asked = command()
        assert asked.exit_code == 3, asked.stderr
        file = out / "labels" / f"iteration-{k}.jsonl"
        assert asked.stderr.startswith(f"{file}: 20 of the 20 comparisons of iteration {k} wait")
        last = "and start the run again\nThe run is kept; the same command goes on with it.\n"
        assert asked.stderr.endswith(last)
        assert "== Paused after " in asked.stdout
        assert f"Iteration {k} of 2" in asked.stdout
        rows = rows_of(file)
        write(file, [row | {"label": "first"} for row in rows[:5]] + rows[5:])
        kept = file.read_bytes()
        part = command()
        assert part.exit_code == 3
        assert file.read_bytes() == kept
        assert "15 of the 20" in part.stderr
        assert "the first in line 6" in part.stderr
        give_labels(out)
    done = command()
    assert done.exit_code == 0, done.stderr
    (out / "report.html").unlink()
    assert differing(outcome(out), whole[0]) == []


def test_the_run_trained_on_what_the_people_said(whole):
    _, out = whole
    for k in (1, 2):
        said = {
            (r["prompt"], r["first"], r["second"]): r["label"]
            for r in rows_of(out / f"labels/iteration-{k}.jsonl")
        }
        held_out = rows_of(out / f"labels/iteration-{k}.jsonl")[16:]
        folder = out / f"iteration-{k}" / "preferences"
        data = Dataset.from_file(str(folder / "train.arrow"))
        assert len(data) == 16
        for row in data:
            assert len(row["chosen"]) >= len(row["rejected"])
            texts = (row["prompt"], row["chosen"], row["rejected"])
            word = "first" if texts in said else "second"
            label = said[texts if word == "first" else (texts[0], texts[2], texts[1])]
            assert row["label"] == (0.5 if label == "tie" else 1.0)
            assert label in ("tie", word)
        held = Dataset.from_file(str(folder / "held_out.arrow"))
        assert held["prompt"][:] == [row["prompt"] for row in held_out]


def test_gold_is_null_everywhere_and_the_report_is_made(whole):
    _, out = whole
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in rows if row["kind"] == "eval"]
    assert len(evals) == 4
    for row in evals:
        unknown = ("gold_wins", "gold_sft_std", "gap", "gap_latest", "mmd", "mmd_batch", "spearman")
        assert all(row[key] is None for key in unknown)
        assert row["proxy_wins"] is not None
    accuracy = [row["accuracy"] for row in rows if row["kind"] == "iteration"]
    assert all(0 <= share <= 1 for share in accuracy)  # against the people's labels
    asked = [row for row in rows if row.get("stage") == "preferences"]
    assert [row["actions"] for row in asked] == [{"file_labels.label": 20}] * 2
    assert all("file_labels/gold_agreement" not in row for row in asked)
    shown = CliRunner().invoke(app, ["report", str(out)])
    assert shown.exit_code == 0, shown.stderr
    assert "–" in shown.stdout  # the gold column
    assert (out / "report.html").stat().st_size > 1000
    (out / "report.html").unlink()


def test_the_pairs_that_people_see_are_not_drawn_again(whole, tmp_path, monkeypatch):
    """They might come out otherwise: here every response would, as on another device."""
    out = tmp_path / "run"
    with pytest.raises(Pause):
        ostinato.run(PEOPLE, out, SMALL)
    give_labels(out)

    def another(samples, prompts, ctx):
        assert ctx.iteration > 1, "the pairs of iteration 1 were drawn again"
        return made(samples, prompts, ctx)

    made = stages.comparisons_of
    monkeypatch.setattr(stages, "comparisons_of", another)
    _, pauses = live(out)
    assert pauses == 1
    assert differing(outcome(out), whole[0]) == []


def test_python_is_told_by_an_exception(tmp_path):
    with pytest.raises(Pause, match="20 of the 20 comparisons of iteration 1 wait for a label"):
        ostinato.run(PEOPLE, tmp_path / "run", SMALL)
    assert (tmp_path / "run/labels/iteration-1.jsonl").exists()


def test_crashes_between_the_pauses_change_nothing(whole, tmp_path):
    draw = random.Random(0)
    _, pauses = live(tmp_path / "run", [draw.randint(2, 14) for _ in range(6)])
    assert pauses == 2
    assert differing(outcome(tmp_path / "run"), whole[0]) == []


@pytest.mark.slow
def test_kill_9_with_the_labels_there(whole, tmp_path):
    """The labels outlive it, and the run ends as if nothing had happened."""
    out = tmp_path / "run"
    with pytest.raises(Pause):
        ostinato.run(PEOPLE, out, SMALL)
    give_labels(out)
    given = (out / "labels/iteration-1.jsonl").read_bytes()
    program = f"import ostinato; ostinato.run({str(PEOPLE)!r}, {str(out)!r}, {SMALL!r})"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        while process.poll() is None and not (out / "iteration-1/policy_init").exists():
            time.sleep(0.002)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    _, pauses = live(out)
    assert pauses == 1
    assert (out / "labels/iteration-1.jsonl").read_bytes() == given
    assert differing(outcome(out), whole[0]) == []
