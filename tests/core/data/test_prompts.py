"""Prompts: every form of file, template and split, and each error as one sentence."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from transformers import ByT5Tokenizer

from ostinato.config.errors import UserError
from ostinato.config.sections import PromptsSection, Shares
from ostinato.data.prompts import load_prompts, read_rows, render, split_of, split_prompts
from ostinato.models.loading import prompt_tokens

ROWS = [{"prompt": f"prompt number {i}"} for i in range(60)]
ALPACA = [  # in the shape of LLaMA-Factory's alpaca_en_demo.json
    {
        "instruction": "Describe a process of making crepes.",
        "input": "",
        "output": "Making crepes is an easy and delicious process!",
    },
    {
        "instruction": "Transform the following sentence using a synonym.",
        "input": "The car sped quickly.",
        "output": "The car raced swiftly.",
    },
]


def settings(data, **changes):
    sizes = {"preference": 4, "held_out": 2, "evaluation": 4}
    return PromptsSection(data=str(data), **{**sizes, **changes})


def jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


# --- Files ----------------------------------------------------------------------------------------


def write_jsonl(folder):
    return jsonl(folder / "rows.jsonl", ROWS)


def write_json(folder):
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return folder / "rows.json"


def write_arrow(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return next((folder / "saved").glob("*.arrow"))


def write_folder(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def write_splits(folder):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(folder / "saved")
    return folder / "saved"


def write_csv(folder):
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt"])
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / "rows.csv"


def write_txt(folder):
    text = "\r\n".join(row["prompt"] for row in ROWS)
    (folder / "rows.txt").write_bytes(text.encode() + b"\n\n")
    return folder / "rows.txt"


def compressed(write):
    def made(folder):
        path = write(folder)
        with gzip.open(f"{path}.gz", "wb") as file:
            file.write(path.read_bytes())
        path.unlink()
        return Path(f"{path}.gz")

    made.__name__ = f"{write.__name__}_gz"
    return made


LOCAL = [write_jsonl, write_json, write_csv, write_txt]


@pytest.mark.parametrize(
    "write", [*LOCAL, *map(compressed, LOCAL), write_arrow, write_folder, write_splits]
)
def test_every_form_of_file_gives_its_rows(tmp_path, write):
    assert read_rows(str(write(tmp_path)), "train", "prompts.data") == ROWS


def test_a_parquet_file_gives_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert read_rows(str(tmp_path / "rows.parquet"), "train", "prompts.data") == ROWS


def test_a_line_ends_at_a_newline_alone(tmp_path):
    path = tmp_path / "web.jsonl"
    texts = ["next line \u0085 here", "line \u2028 and paragraph \u2029", "form feed \\f"]
    lines = ['{"prompt": "' + text + '"}\r\n' for text in texts]
    path.write_bytes(("\ufeff" + "".join(lines)).encode())  # some editors put U+FEFF first
    rows = read_rows(str(path), "train", "prompts.data")
    assert [row["prompt"] for row in rows] == [*texts[:2], "form feed \f"]


def broken_files(folder):
    (folder / "list.json").write_text("[1, 2]")
    (folder / "empty.jsonl").write_text("\n")
    (folder / "line.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (folder / "whole.json").write_text('[\n{"prompt": "a"},\n{"prompt" "b"}]')
    (folder / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    (folder / "cut.arrow").write_bytes(b"ARROW1 and no more")
    (folder / "wide.csv").write_text("prompt,tone\na,b\nc,d,e\n")
    (folder / "quote.csv").write_text('prompt\n"open')
    (folder / "no.jsonl.gz").write_bytes(b'{"prompt": "a"}')
    (folder / "rows.tsv").write_text("prompt\na\n")
    os.mkfifo(folder / "pipe.jsonl")
    DatasetDict({"training": Dataset.from_list(ROWS)}).save_to_disk(folder / "splits")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.jsonl", "'{}' is neither a file or folder here nor a data set on the hub"),
        ("absent.arrow", "'{}' is neither a file or folder here nor a data set on the hub"),
        ("list.json", "'{}' should hold at least one row, each a mapping"),
        ("empty.jsonl", "'{}' should hold at least one row, each a mapping"),
        ("line.jsonl", "'{}' is not valid JSON at line 2"),
        ("whole.json", "'{}' is not valid JSON at line 3"),
        ("latin.jsonl", "'{}' cannot be read: "),
        ("cut.arrow", "'{}' cannot be read: "),
        ("wide.csv", "'{}' cannot be read: a row has more cells than the first line has names"),
        ("quote.csv", "'{}' cannot be read: unexpected end of data"),
        ("no.jsonl.gz", "'{}' cannot be read: Not a gzipped file"),
        ("absent.csv.gz", "'{}' is neither a file or folder here nor a data set on the hub"),
        ("rows.tsv", "'{}' cannot be read: expected one of .csv, .json, .jsonl, .txt, .parquet"),
        ("pipe.jsonl", "'{}' cannot be read: it is no regular file"),
        ("n" * 300 + ".jsonl", "'{}' cannot be read: File name too long"),
        ("splits", "'{}' cannot be read: no split 'train'; did you mean 'training'?"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, name, said):
    broken_files(tmp_path)
    path = str(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read_rows(path, "train", "prompts.data")
    assert str(caught.value).startswith("prompts.data: " + said.format(path))
    assert "\n" not in str(caught.value)


def test_a_hub_name_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        read_rows("nobody/no-such-prompts", "train", "prompts.data")
    assert str(caught.value).startswith("prompts.data: 'nobody/no-such-prompts' ")
    assert "\n" not in str(caught.value)


# --- Templates ------------------------------------------------------------------------------------


def test_the_alpaca_template_is_stanfords():
    plain = render(ALPACA[0], "alpaca", "prompt", "here")
    assert plain == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nDescribe a process of making crepes.\n\n"
        "### Response:\n"
    )
    given = render(ALPACA[1], "alpaca", "prompt", "here")
    assert "paired with an input that provides further context. " in given
    assert given.endswith("### Input:\nThe car sped quickly.\n\n### Response:\n")


def test_the_open_assistant_template():
    found = render(ALPACA[1], "open-assistant", "prompt", "here")
    assert found == (
        "<|prompter|>Transform the following sentence using a synonym.\nThe car sped quickly."
        "<|endoftext|><|assistant|>"
    )


def test_custom_templates_see_every_column_and_the_chosen_field():
    row = {"question": "why {x}?", "tone": "kind"}
    assert render(row, "[{tone}] {prompt}", "question", "here") == "[kind] why {x}?"
    assert render(row, "{question}!", "prompt", "here") == "why {x}?!"
    row = {"prompt": [{"content": "why?"}], "year": 1987, "share": 0.25}
    assert render(row, "{prompt[0][content]} {year:>6} {share:.0%}", "prompt", "here") == (
        "why?   1987 25%"
    )


@pytest.mark.parametrize(
    ("row", "template", "said"),
    [
        ({"promt": "a"}, "{prompt}", "a row of here has no column 'prompt'; did you mean 'promt'?"),
        ({"prompt": None}, "{prompt}", "a row of here has nothing in its column 'prompt'"),
        ({"instrucion": "a"}, "alpaca", "a row of here has no column 'instruction'; did you mean"),
        ({"prompt": "a"}, "{prompt} {tone}", "prompts.template: '{prompt} {tone}' does not fit"),
        ({"prompt": "a"}, "{prompt", "prompts.template: '{prompt' does not fit"),
        ({"prompt": "a"}, "{prompt.x}", "prompts.template: '{prompt.x}' does not fit"),
        ({"prompt": "a"}, "{prompt[x]}", "prompts.template: '{prompt[x]}' does not fit"),
        ({"prompt": "a"}, "{prompt} {}", "prompts.template: '{prompt} {}' does not fit"),
        ({"prompt": "a", "tone": None}, "{prompt} {tone}", "a row of here has nothing in its col"),
        ({"instruction": None}, "alpaca", "a row of here has nothing in its column 'instruction'"),
        (
            {"prompt": [{"role": "user", "content": "a"}]},
            "{prompt}",
            "a row of here has a list in its column 'prompt', not text; conversations are not read",
        ),
        ({"prompt": {"content": "a"}}, "{prompt!s}", "a row of here has a dict in its column 'pro"),
        ({"prompt": True}, "{prompt}", "a row of here has a bool in its column 'prompt', not text"),
        ({"prompt": "a\ud800"}, "{prompt}", "a row of here has half a surrogate pair in its colum"),
        (
            {"prompt": "a"},
            "{prompt:>2000000000}",
            "prompts.template: '{prompt:>2000000000}' does not fit the rows of here: "
            "'>2000000000' asks for more than 1000 characters",
        ),
        (
            {"prompt": "a", "n": 10**9},
            "{prompt:>{n}}",
            "prompts.template: '{prompt:>{n}}' does not",
        ),
    ],
)
def test_a_template_that_does_not_fit_is_one_sentence(row, template, said):
    with pytest.raises(UserError) as caught:
        render(row, template, "prompt", "here")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_one_row_without_a_prompt_is_found_wherever_it_stands(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [*ROWS, {"text": "no prompt"}])
    with pytest.raises(UserError, match="has no column 'prompt'"):
        split_prompts(settings(path))


# --- Splits ---------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_hold_every_distinct_prompt(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", ROWS + ROWS[:20])
    found = split_prompts(settings(path))
    texts = [text for split in found.values() for text in split.texts]
    assert sorted(texts) == sorted(row["prompt"] for row in ROWS)
    assert {i for s in found.values() for i in s.ids} == set(range(60))  # the first of equals


def test_a_prompt_keeps_its_split_when_rows_are_added_or_moved(tmp_path):
    first = split_prompts(settings(jsonl(tmp_path / "a.jsonl", ROWS)))
    more = [{"prompt": f"another {i}"} for i in range(50)]
    second = split_prompts(settings(jsonl(tmp_path / "b.jsonl", [*more, *ROWS[::-1]])))
    for name in first:
        assert set(first[name].texts) <= set(second[name].texts)


def test_splits_follow_the_shares():
    shares = Shares(preference=0.5, rl=0.3, evaluation=0.2)
    names = [split_of(f"prompt {i}", shares) for i in range(4000)]
    for name in ("preference", "rl", "evaluation"):
        assert names.count(name) / 4000 == pytest.approx(getattr(shares, name), abs=0.03)


def test_loaded_prompts_have_the_policys_tokens_and_too_long_ones_are_left_out(tmp_path):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    long = [{"prompt": f"{i} " + "long" * 20} for i in range(60)]
    path = jsonl(tmp_path / "rows.jsonl", ROWS + long)
    found = load_prompts(settings(path, max_tokens=20), tokenizer)
    texts = found.preference.texts + found.rl.texts + found.evaluation.texts
    assert not any("long" in text for text in texts)
    assert found.rl.tokens == prompt_tokens(tokenizer, found.rl.texts)
    assert [ROWS[i]["prompt"] for i in found.rl.ids] == found.rl.texts
    assert len(found.evaluation) == 4
    assert found.longest == max(map(len, found.preference.tokens + found.rl.tokens)) <= 20


def test_further_columns_of_the_file_are_known_by_prompt(tmp_path):
    """Whichever split a prompt is in; of equal prompts the first row counts, a lack is None."""
    rows = [row | {"answer": i, "answer_kind": "number"} for i, row in enumerate(ROWS)]
    rows[7].pop("answer_kind")
    more = [rows[3] | {"answer": -1}]
    path = jsonl(tmp_path / "rows.jsonl", rows + more)
    splits = load_prompts(settings(path), ByT5Tokenizer(extra_ids=0))
    for split in (splits.preference, splits.rl, splits.evaluation):
        assert split.columns["answer"] == split.ids
        assert split.repeated(2).columns["answer"] == [i for i in split.ids for _ in range(2)]
    known = {*splits.preference.ids, *splits.rl.ids, *splits.evaluation.ids}
    asked = [*sorted(known)[::-1], *sorted(known)[:2]]
    found = splits.columns([ROWS[i]["prompt"] for i in asked])
    assert found["answer"] == asked
    assert found["prompt"] == [ROWS[i]["prompt"] for i in asked]
    assert found["answer_kind"] == [None if i == 7 else "number" for i in asked]
    with pytest.raises(UserError, match="no row of the prompts file is the prompt 'What is it'"):
        splits.columns([ROWS[asked[0]]["prompt"], "What\nis it"])


def test_too_few_prompts_are_one_sentence(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(
        UserError, match=r"gives \d+ preference prompts of 60 distinct ones, but 99"
    ):
        split_prompts(settings(path, preference=97))
    with pytest.raises(UserError, match=r"gives 0 preference prompts of 0 of at most 3 tokens"):
        load_prompts(settings(path, max_tokens=3), ByT5Tokenizer(extra_ids=0))
