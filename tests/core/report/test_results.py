"""Finished runs read back: groups, runs cut short, and damage."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finished_runs import make_run
from ostinato.config.errors import UserError
from ostinato.config.yaml_files import dumped, parsed
from ostinato.report.results import groups_of, read_run, titles


def test_groups_differ_in_more_than_the_seed(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a", 0, rl={"rollouts": 4, "lr": 0.1}, backend={"threads": 1}),
        make_run(tmp_path / "b", 0, rl={"rollouts": 8, "lr": 0.1}, plugins=[{"ppo": {"clip": 1}}]),
        make_run(tmp_path / "c", 1, rl={"rollouts": 4, "lr": 0.1}, backend={"threads": 2}),
    ]
    groups = groups_of([read_run(path) for path in paths])
    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "c"], ["b"]]
    assert groups[0].seeds == [0, 1]
    assert titles(groups) == ["rl.rollouts 4", "rl.rollouts 8, ppo.clip 1"]
    with pytest.raises(UserError, match="is given twice"):
        groups_of([read_run(paths[0]), read_run(paths[0])])


def test_runs_of_one_plugin_of_a_file_are_alike_where_its_content_is(tmp_path: Path) -> None:
    paths = []
    for i, (folder, sha256) in enumerate((("x", "1"), ("y", "1"), ("x", "2"))):
        path = make_run(tmp_path / str(i), i, plugins=[{f"/{folder}/my.py:Cap": {"bound": 2}}])
        facts = parsed((path / "run.yaml").read_text())
        own = {"name": "Cap", "file": f"/{folder}/my.py", "sha256": 64 * sha256}
        facts["plugins"].append({**own, "hooks": ["reward_transform"], "settings": {"bound": 2.0}})
        (path / "run.yaml").write_text(dumped(facts))
        paths.append(path)
    groups = groups_of([read_run(path) for path in paths])
    assert [group.seeds for group in groups] == [[0, 1], [2]]
    assert titles(groups) == ["Cap.file 111111111111", "Cap.file 222222222222"]


def test_runs_of_unequal_length(tmp_path: Path) -> None:
    long = make_run(tmp_path / "long", 0, (0.25, 0.75), iterations=2)
    short = make_run(tmp_path / "short", 1, (0.5,), iterations=2)
    [group] = groups_of([read_run(long), read_run(short)])
    assert group.values(1, "gold_sft_std") == [0.25, 0.5]
    assert group.values(2, "gold_sft_std") == [0.75]


def test_a_line_being_written_is_left_out(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "ev')
    assert len(read_run(path).iterations) == 2


def _no_folder(path: Path) -> str:
    return f"{path / 'none'}: no such run folder"


def _file(path: Path) -> str:
    (path / "none").write_text("notes")
    return f"{path / 'none'}: is a file, not a run's folder"


def _no_metrics(path: Path) -> str:
    """Paused before anything was logged."""
    (path / "metrics.jsonl").unlink()
    return f"{path}: no iteration is finished yet; let the run go on first"


def _no_record(path: Path) -> str:
    (path / "run.yaml").unlink()
    return f"{path}: holds no run.yaml, so it is not a run's folder"


def _bad_record(path: Path) -> str:
    (path / "run.yaml").write_bytes(b"config: \xff")
    return f"{path / 'run.yaml'}: is not text in UTF-8, expected a YAML run file"


def _other_record(path: Path) -> str:
    (path / "run.yaml").write_text("format: 2\nconfig: {seed: 0}\n")
    return f"{path / 'run.yaml'}: is damaged at 'config.iterations', and cannot be shown"


def _older(path: Path) -> str:
    file = path / "run.yaml"
    file.write_text(file.read_text().replace("format: 2\n", ""))
    return f"{path}: holds a run of another edition of Ostinato"


def _no_seed(path: Path) -> str:
    file = path / "run.yaml"
    file.write_text(file.read_text().replace("seed: 0", "other: 0"))
    return f"{file}: is damaged at 'config.seed', and cannot be shown"


def _plugin_without_name(path: Path) -> str:
    file = path / "run.yaml"
    file.write_text(file.read_text().replace("name: concat", "game: concat"))
    return f"{file}: is damaged at 'plugins.0.name', and cannot be shown"


def _bad_line(path: Path) -> str:
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:20]
    file.write_text("\n".join(lines) + "\n")
    return f"{file}: line 3 is damaged, expected a metrics row"


def _no_row(path: Path) -> str:
    file = path / "metrics.jsonl"
    file.write_text("[1]\n")
    return f"{file}: line 1 is damaged, expected a metrics row"


def _row(damaged: str, whole: str = '"kl": 0.0') -> Callable[[Path], str]:
    """The first evaluation with another value, as JSON writes it."""

    def damage(path: Path) -> str:
        file = path / "metrics.jsonl"
        file.write_text(file.read_text().replace(whole, damaged, 1))
        return f"{file}: line 1 is damaged, expected a metrics row"

    return damage


def _no_iteration(path: Path) -> str:
    file = path / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    return (
        f"{path}: no iteration is finished yet; let the run go on first "
        "(2 evaluations; rollout 4: gold +0.25, proxy +2.00, gold wins 52%, proxy wins 90%, "
        "gap +0.75, KL 4.00)"
    )


NUMBERS = (
    '"kl": -0.5',
    '"kl": NaN',
    '"gap": Infinity',
    '"gap": 1e999',
    f'"gap": {10**400}',
    '"kl": "1"',
    '"step": null',
    '"gap": ' + "[" * 9999,
)


@pytest.mark.parametrize(
    "damage",
    [
        _no_folder,
        _file,
        _no_metrics,
        _no_record,
        _bad_record,
        _other_record,
        _older,
        _no_seed,
        _plugin_without_name,
        _bad_line,
        _no_row,
        _no_iteration,
        *map(_row, NUMBERS),
        _row('"samples": [3, {', '"samples": [{'),
        _row('"response": 3, "x": ', '"response": '),
    ],
)
def test_damage_is_one_sentence(damage: Any, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    expected = damage(path)
    given = path / "none" if damage in (_no_folder, _file) else path
    with pytest.raises(UserError) as caught:
        read_run(given)
    assert str(caught.value) == expected


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of one who is not root, so that permissions count."""
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), os.geteuid() == 0
        folder.chmod(0o777)
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.yaml", "."])
def test_a_run_that_may_not_be_read_is_one_sentence(name: str, open_folder: Path) -> None:
    path = make_run(open_folder / "run")
    (path / name).chmod(0)
    with pytest.raises(UserError) as caught:
        read_run(path)
    (path / name).chmod(0o700)
    place = path / ("run.yaml" if name == "." else name)
    assert str(caught.value) == f"{place}: cannot be read: Permission denied"


def marked(path: Path, stage: str, rows: int) -> Path:
    """A finished stage that noted the first ``rows`` rows, as a run does."""
    text = b"".join((path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:rows])
    folder = path / stage
    folder.mkdir(parents=True)
    mark = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (folder / "done.json").write_text(json.dumps({"metrics": mark, "files": {}}))
    return folder / "done.json"


@pytest.mark.parametrize("digit", [3, 5])  # before the first mark, and between both
def test_a_changed_digit_is_not_shown_as_fact(digit: int, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    marks = [marked(path, f"iteration-{k}/policy", 3 * k) for k in (1, 2)]
    assert len(read_run(path).iterations) == 2
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[digit - 1] = lines[digit - 1].replace('"kl": 4', '"kl": 5')
    file.write_text("".join(lines))
    with pytest.raises(UserError) as caught:
        read_run(path)
    assert str(caught.value) == (
        f"{file}: is not what {marks[digit > 3]} noted of it, so its numbers are not shown; one of "
        "the two was changed since the run wrote them, restore it"
    )


def test_a_shortened_file_is_not_shown_as_whole(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    marked(path, "iteration-2/policy", 6)
    file = path / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match=r"is not what .*/iteration-2/policy/done\.json noted"):
        read_run(path)


def test_marks_that_say_nothing_of_the_rows(tmp_path: Path) -> None:
    """Rows behind the last mark, a mark that is no mark, and results inside an unfinished stage."""
    path = make_run(tmp_path / "run")
    marked(path, "iteration-1/policy", 3)
    for stage, text in (("data", "{"), ("combined", "[]")):
        marked(path, f"iteration-1/{stage}", 2).write_text(text)
    inside = marked(path, "iteration-1/cache-pairs", 2)
    inside.write_text(inside.read_text().replace('"bytes": ', '"bytes": 1'))
    assert len(read_run(path).iterations) == 2


def several(tmp_path: Path, *settings: dict[str, Any]) -> list[str]:
    paths = [make_run(tmp_path / f"run-{i}", 0, **some) for i, some in enumerate(settings)]
    return titles(groups_of([read_run(path) for path in paths]))


def test_titles_name_what_differs_and_fold_what_is_common(tmp_path: Path) -> None:
    """No absolute path, no common plugin, never more than a line or so."""
    common = [{"worst_case": {"a": 1}}, "from_sft"]
    deep = "/home/somebody/a/long/way/down/worlds"
    found = several(
        tmp_path,
        {
            "world": "toy",
            "policy": {"model": f"{deep}/toy/policy", "lr": 1},
            "prompts": {"data": f"{deep}/toy/prompts.jsonl"},
            "plugins": ["concat", *common],
        },
        {
            "world": "quickstart",
            "policy": {"model": f"{deep}/quickstart/policy", "lr": 1},
            "prompts": {"data": f"{deep}/quickstart/prompts.jsonl"},
            "plugins": [*common, {"liti": {"eta": 0.3, "file": "/data/somewhere/far/ratings.csv"}}],
        },
        {
            "world": "quickstart",
            "policy": {"model": f"{deep}/quickstart/policy", "lr": 1},
            "prompts": {"data": f"{deep}/quickstart/prompts.jsonl"},
            "plugins": common,
        },
    )
    assert found == [
        "world toy, policy.model toy/policy, prompts.data toy/prompts.jsonl, concat",
        "world quickstart, policy.model quickstart/policy, prompts.data quickstart/prompts.jsonl, "
        "liti.eta...",
        "world quickstart, policy.model quickstart/policy, prompts.data quickstart/prompts.jsonl",
    ]


def test_titles_where_a_group_has_less_than_the_others(tmp_path: Path) -> None:
    assert several(tmp_path, {"plugins": []}, {"plugins": ["liti"]}) == ["without liti", "liti"]


def test_titles_are_distinct(tmp_path: Path) -> None:
    """Where the order of plugins, or what was cut off, is all the difference: by folder."""
    order = several(tmp_path / "a", {"plugins": ["x", "y"]}, {"plugins": ["y", "x"]})
    assert order == ["run-0", "run-1"]
    long = [{"prompts": {"template": "long " * 20 + end}} for end in "ab"]
    cut = several(tmp_path / "b", *long)
    assert [title[-8:] for title in cut] == [" (run-0)", " (run-1)"]
    assert max(map(len, cut)) < 120


def test_one_group_is_called_by_its_world_or_folder(tmp_path: Path) -> None:
    assert several(tmp_path / "a", {"world": "/some/where/toy"}) == ["toy"]
    assert several(tmp_path / "b", {}) == ["run-0"]


def test_a_title_is_one_line_that_commands_nothing(tmp_path: Path) -> None:
    texts = [{"prompts": {"template": f"\x1b[2J\n$\\frac{{$ [/b]{i}"}} for i in range(2)]
    assert several(tmp_path, *texts) == [
        f"prompts.template ·[2J $\\frac{{$ [/b]{i}" for i in range(2)
    ]
