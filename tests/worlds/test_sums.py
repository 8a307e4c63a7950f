"""The world of sums: its checker against sums worked out otherwise, and what it ships."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import ostinato
from ostinato_worlds import sums
from ostinato_worlds.sums import arithmetic

PROMPT, EXACT = "347+285=", "7+5=12;4+8+1=13;3+2+1=6;632"
CHECKPOINTS = [sums.POLICY, sums.REWARD_MODEL]
# Response, and by hand which of its steps are right; the last is the answer.
JUDGED = [
    (EXACT, "yyyy"),
    ("7+5=12;4+8=12;3+2+1=6;622", "ynyn"),  # a carry is forgotten, and gone on from
    ("7+5=11;4+8+1=13;3+2+1=6;631", "nyyn"),  # a slip
    ("7+5=2;4+8=12;3+2+1=6;622", "nyyn"),  # no carry was written, so none is to be added
    ("7+5=12;4+8+1=13;3+2+1=6;623", "yyyn"),  # read off wrongly
    ("7+5=12;4+8=12;3+2+1=6;632", "ynyy"),  # right by luck
    ("5+7=12;4+8+1=13;3+2+1=6;632", "nyyy"),  # the digits stand the wrong way round
    ("7+5=12;4+1+8=13;3+2+1=6;632", "ynyy"),
    ("632", "y"),
    ("", "n"),
    ("7+5=12", "n"),  # a step is no answer
    ("7+5=12;", "yn"),
    ("7+5=12;4+8+1=13;3+2+1=6;0+0=0;632", "yyyny"),  # a column that is not there
    ("7+5=12;4+8+1=13;3+2+1=6;0632", "yyyn"),
    ("7+5=12;4+8+1=13;3+2+1=6;632;", "yyynn"),
    (";;;632", "nnny"),
    ("7+5=12;7+5=12;3+2+1=6;632", "ynyy"),
]


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in sums.PROMPTS.read_text(encoding="utf-8").splitlines()]


# ---- the checker


@pytest.mark.parametrize(("response", "right"), JUDGED)
def test_each_step_is_judged(response: str, right: str) -> None:
    assert arithmetic.judge(PROMPT, response) == [letter == "y" for letter in right]
    assert sums.check_steps([PROMPT], [response]) == [[letter == "y" for letter in right]]


def test_the_exact_solution_of_every_prompt_is_right() -> None:
    for row in rows():
        numbers = arithmetic.parse_prompt(row["prompt"])
        exact = arithmetic.solution(*numbers)
        # int() adds, and reads no column
        assert int(exact.split(";")[-1]) == int(row["answer"]) == sum(numbers)
        assert all(arithmetic.judge(row["prompt"], exact))
        assert len(exact) < arithmetic.RESPONSE_TOKENS


def test_right_steps_give_the_right_answer() -> None:
    """By induction over the columns: if all steps are right, their digits spell the sum."""
    rng = random.Random(0)
    whole = 0
    for prompt, response in arithmetic.attempts(3000, rng):
        *steps, answer = arithmetic.judge(prompt, response)
        if all(steps):
            *written, _ = response.split(";")
            totals = [int(step.split("=")[1]) for step in written]
            read = "".join(str(t % 10) for t in reversed(totals))
            assert int("1" * (totals[-1] > 9) + read) == sum(arithmetic.parse_prompt(prompt))
            whole += answer
    assert whole > 1000


def test_a_changed_character_is_a_changed_verdict() -> None:
    """Every edit of one character of the exact response makes some step wrong."""
    for place in range(len(EXACT)):
        for other in arithmetic.CHARACTERS.replace(EXACT[place], ""):
            response = EXACT[:place] + other + EXACT[place + 1 :]
            assert not all(arithmetic.judge(PROMPT, response)), response


@pytest.mark.parametrize(
    "text", ["347+28=", "347+285", "7+5=", "047+285=", "3470+2850=", "347 + 285 =", "", "٣٤+٢٨="]
)
def test_what_is_no_prompt_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a prompt of the world of sums"):
        arithmetic.judge(text, EXACT)


def test_the_verifier_reads_the_answer_alone() -> None:
    right = ["632", "7+5=1;632", EXACT, "631", "", EXACT + ";", "0632", " 632"]
    found = sums.verify(prompts=[PROMPT] * 8, completions=right, answer=["632"] * 8)
    assert found == [1, 1, 1, 0, 0, 0, 0, 0]
    assert sums.verify(completions=["632"], answer=[632]) == [1]  # a column of numbers


# ---- the gold


def test_the_gold_is_the_answer_and_a_share_of_the_steps() -> None:
    responses = [EXACT, "632", "7+5=12;4+8=12;3+2+1=6;622", "", EXACT + EXACT[:-1]]
    gold = sums.gold()
    scores = gold.score([PROMPT] * 5, responses, [True] * 5)
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx([1.2, 1.0, 0.4 / 3, 0.0, 0.2])
    parts = gold.parts([PROMPT] * 5, responses, [True] * 5)
    assert parts["answer"].tolist() == [1, 1, 0, 0, 0]
    torch.testing.assert_close(parts["answer"] + parts["steps"], scores)


def test_what_is_cut_off_has_no_answer() -> None:
    assert sums.gold().score([PROMPT], [EXACT], [False]).item() == pytest.approx(0.2)


def test_steps_without_end_earn_no_more_than_the_exact_ones() -> None:
    """Nothing but a right answer is worth more than all its steps."""
    again = ";".join(EXACT.split(";")[:3] * 4)
    best = max(
        sums.gold().score([PROMPT], [text], [True]).item()
        for text in (again, EXACT + ";" + again, ";".join(["7+5=12"] * 9))
    )
    assert best <= sums.STEPS + 1e-6


def test_the_gold_scores_an_empty_batch_and_refuses_an_uneven_one() -> None:
    assert sums.gold().score([], [], []).shape == (0,)
    with pytest.raises(ValueError, match="1 prompts, 2 responses and 1 flags"):
        sums.gold().score([PROMPT], [EXACT, EXACT], [True])


# ---- a pupil's attempts


def test_a_seed_names_attempts() -> None:
    made = arithmetic.attempts(20, random.Random(3))
    assert made == arithmetic.attempts(20, random.Random(3))
    assert made != arithmetic.attempts(20, random.Random(4))


def test_a_pupil_errs_as_often_as_is_said() -> None:
    made = arithmetic.attempts(6000, random.Random(0))
    forgotten = [
        re.fullmatch(r"\d\+\d=\d+", after) is not None
        for _, response in made
        for before, after in zip(response.split(";"), response.split(";")[1:-1], strict=False)
        if re.search(r"=1\d$", before)
    ]
    assert sum(forgotten) / len(forgotten) == pytest.approx(arithmetic.FORGOTTEN, abs=0.02)
    judged = sums.check_steps(*zip(*made, strict=True))
    whole = [answer for *steps, answer in judged if all(steps)]
    assert 1 - sum(whole) / len(whole) == pytest.approx(arithmetic.MISREAD, abs=0.01)
    characters = set(arithmetic.CHARACTERS)
    assert all(characters.issuperset(p + r) for p, r in made)
    assert max(len(r) for _, r in made) < arithmetic.RESPONSE_TOKENS


# ---- what is shipped


def test_prompts_are_distinct_and_have_their_answers() -> None:
    shipped = rows()
    assert all(set(row) == {"prompt", "answer"} for row in shipped)
    assert len({row["prompt"] for row in shipped}) == len(shipped) == 1500
    assert sums.verify(
        completions=[row["answer"] for row in shipped], answer=[row["answer"] for row in shipped]
    ) == [1] * len(shipped)
    assert {len(row["prompt"]) for row in shipped} == {6, arithmetic.PROMPT_TOKENS}


def test_the_world_is_small() -> None:
    folder = sums.PROMPTS.parent
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 900_000


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_text_survives_the_tokenizer(folder: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == arithmetic.vocabulary()
    assert (tokenizer.pad_token, tokenizer.eos_token) == (arithmetic.PAD, arithmetic.EOS)
    assert tokenizer.bos_token is None
    texts = [text for pair in arithmetic.attempts(100, random.Random(1)) for text in pair]
    ids = tokenizer(texts)["input_ids"]
    assert [len(row) for row in ids] == [len(text) for text in texts]
    assert tokenizer.batch_decode(ids) == texts
    padded = [[*row, tokenizer.eos_token_id, tokenizer.pad_token_id] for row in ids]
    assert tokenizer.batch_decode(padded, skip_special_tokens=True) == texts


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_checkpoints_know_their_special_tokens_and_never_write_the_others(folder: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
        assert config.bos_token_id is None
    pairs = [p for p in arithmetic.attempts(300, random.Random(2)) if len(p[0]) == 8]
    texts = [f"{prompt}{response}{arithmetic.EOS}" for prompt, response in pairs]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[:, 7:-1]
    response = batch["attention_mask"][:, 8:].bool()
    mass = logits.softmax(-1)[response]  # (response tokens, vocabulary)
    stray = mass[:, [tokenizer.pad_token_id, tokenizer.unk_token_id]].sum(1)
    assert stray.mean() < 1e-4
    assert stray.max() < 1e-2


def test_the_policy_is_right_about_half_the_time() -> None:
    tokenizer = AutoTokenizer.from_pretrained(sums.POLICY)
    model = AutoModelForCausalLM.from_pretrained(sums.POLICY)
    prompts = [row["prompt"] for row in rows()[:384]]
    given = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = model.generate(
            **given, do_sample=True, top_k=0, max_new_tokens=arithmetic.RESPONSE_TOKENS
        )[:, given["input_ids"].shape[1] :]
    assert (ids == tokenizer.eos_token_id).any(1).float().mean() > 0.98
    responses = tokenizer.batch_decode(ids, skip_special_tokens=True)
    judged = sums.check_steps(prompts, responses)
    right = sum(steps[-1] for steps in judged) / len(judged)
    assert 0.4 <= right <= 0.6
    steps = [step for found in judged for step in found[:-1]]
    assert 0.7 < sum(steps) / len(steps) < 0.95  # a step goes wrong less often than a whole sum


# ---- runs

VERIFY = "ostinato_worlds.sums:verify"
STEPS = {"function": "ostinato_worlds.sums:check_steps", "separator": ";"}
TINY = ["iterations=1", "prompts.preference=16", "prompts.held_out=4", "prompts.evaluation=8"]
TINY += ["reward_model.updates=3", "rl.rollouts=2", "rl.rollout_size=8", "rl.minibatch=8"]


@pytest.mark.parametrize(
    ("plugins", "acted"),
    [
        ([{"orm": {"function": VERIFY}}], {"orm.preference_loss"}),
        ([{"prm": {**STEPS, "dense": True}}], {"prm.preference_loss", "prm.wrap_reward"}),
        ([{"function_reward": {"functions": [VERIFY]}}], {"function_reward.combine_rm"}),
    ],
    ids=["outcomes", "steps", "verifier"],
)
def test_what_learns_from_outcomes_and_steps_runs_here(
    plugins: list[object], acted: set[str], tmp_path: Path
) -> None:
    """Outcomes by the column `answer` of the prompts file."""
    run = ostinato.run({"world": "sums", "plugins": plugins}, tmp_path / "run", TINY)
    actions = [row["actions"] for row in run.metrics if "actions" in row]
    assert acted <= {key for found in actions for key, magnitude in found.items() if magnitude}


@pytest.mark.slow
def test_effect_an_iteration_makes_more_answers_right(tmp_path: Path) -> None:
    run = ostinato.run("sums", tmp_path / "run", ["iterations=1"])
    first, *_, last = (row for row in run.metrics if row["kind"] == "eval")
    assert last["gold_sft_std"] > first["gold_sft_std"] + 0.2
    assert last["gold_wins"] > 0.55
