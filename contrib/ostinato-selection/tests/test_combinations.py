"""Methods that have to stand in one run, and settings that are refused in one sentence."""

import pytest

import ostinato


def acted(made):
    """The largest magnitude of each plugin.hook."""
    found = {}
    for row in made.metrics:
        for key, value in row.get("actions", {}).items():
            found[key] = max(found.get(key, 0.0), value)
    return found


def test_rrm_with_flip_and_active_pairs(run):
    """Pairs are chosen, labels flipped by the votes, and what is left stands across prompts."""
    listed = ["concat", {"strength": {"models": 1}}, {"flip": {"lowest": 0.25}}, "rrm"]
    made = run([*listed, "active_pairs"], iterations=2)
    found = acted(made)
    chosen = ("active_pairs.select_comparisons", "flip.refine_data", "rrm.refine_data")
    assert all(found[key] > 0 for key in chosen)
    rows = {row["iteration"]: row for row in made.metrics if "rrm/won" in row}
    for k in (1, 2):
        pairs = 4 * k  # half of eight, from each iteration
        added = rows[k]["rrm/won"] + rows[k]["rrm/tied"]
        assert rows[k]["actions"]["flip.refine_data"] == round(0.25 * pairs)
        assert rows[k]["actions"]["rrm.refine_data"] == added
        assert 0 < added <= 14 * pairs


def test_many_at_once(run):
    """An owner of each hook, and everything that may stand beside any of them."""
    listed = ["west_of_n", "active_pairs", "rrm", "ids", {"causal_rm": {"bins": 2}}, "curriculum"]
    listed += ["rloo", "pf_ppo", {"best_checkpoint": {"every": 1, "prompts": 4}}]
    listed += [{"early_stopping": {"kl": 1000, "disagreement": 0.001, "every": 2, "prompts": 4}}]
    sections = {"generation": {"max_new_tokens": 24}}
    made = run(listed, reward_model={"updates": None, "epochs": 2}, iterations=2, **sections)
    found = acted(made)
    idle = {"curriculum.reward_transform"}  # it learns there, and changes nothing
    names = [name if isinstance(name, str) else next(iter(name)) for name in listed]
    for name in names:
        mine = {key: value for key, value in found.items() if key.startswith(f"{name}.")}
        assert mine, name
        assert all(value > 0 for key, value in mine.items() if key not in idle), mine
    kinds = [row["kind"] for row in made.metrics]
    assert kinds.count("stopped") == 2
    assert kinds.count("kept") >= 2


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ({"early_stopping": {}}, "has no bound; set kl, disagreement, or both"),
        ({"early_stopping": {"KL": 3}}, "valid names are disagreement, every, kl, prompts"),
        ({"best_checkpoint": {"value": "lowest"}}, "value"),
        ({"west_of_n": {"n": 1}}, "n: "),
        ({"rrm": {"share": 2}}, "share: "),
        ({"active_pairs": {"share": 0}}, "share: "),
        ({"thompson_duels": {"second": "beast"}}, "second: "),
        ({"curriculum": {"temperature": 0}}, "temperature: "),
        ({"pf_ppo": {"keep": "worst"}}, "keep: "),
        ({"causal_rm": {"bins": 1}}, "bins: "),
        ({"ids": {"beta": 0}}, "beta: "),
        ({"apl": {"pairs": 1.5}}, "pairs: "),
    ],
)
def test_a_wrong_setting_is_one_sentence(run, listed, sentence):
    with pytest.raises(ostinato.UserError) as found:
        run([listed])
    said = str(found.value)
    assert sentence in said
    assert next(iter(listed)) in said
    assert len(said.splitlines()) == 1


def test_more_responses_than_are_drawn_are_refused(run):
    with pytest.raises(ostinato.UserError, match="n: is 2, less than the preferences"):
        run([{"west_of_n": {"n": 2}}], preferences={"responses": 3})


@pytest.mark.parametrize("method", ["active_pairs", "thompson_duels"])
def test_votes_are_those_of_the_reward_models_whatever_the_policy_is_rewarded_for(
    run, tmp_path, method
):
    """Rules are parts of R_k; pairs are chosen by the members and heads of R~_{k-1}."""
    rules = tmp_path / "rules.py"
    rules.write_text("def length(completions):\n    return [len(text) for text in completions]\n")
    listed = [{"function_reward": {"functions": [f"{rules}:length"]}}, method]
    sections = {"iterations": 2, "preferences": {"responses": 3}}
    key = f"{method}.select_comparisons"
    assert acted(run(listed, **sections))[key] > 0
    heads = [*listed, {"reward_heads": {"heads": 2}}]
    sections["reward_model"] = {"members": 1}
    assert acted(run(heads, "heads", **sections))[key] > 0
    listed[0]["function_reward"]["functions"] *= 2
    with pytest.raises(ostinato.UserError) as found:
        run(listed, "other", **sections)
    assert str(found.value).endswith(
        f"plugin '{method}' needs at least 2 votes of each reward model; set "
        "reward_model.members: 2, or list a plugin that trains several heads"
    )


def test_two_that_draw_prompts_are_refused(run):
    with pytest.raises(ostinato.UserError, match="curriculum"):
        run(["curriculum", "apl"])
