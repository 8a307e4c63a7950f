"""The methods in runs of the toy world: alone, beside other methods, and with wrong settings."""

import pytest

import ostinato

TINY = ("rl.rollouts=2", "rl.rollout_size=16", "rl.minibatch=8", "prompts.evaluation=8")
SMALL = ("reward_model.updates=3", "prompts.preference=16", "prompts.held_out=8")
WORDS = "def words(completions):\n    return [float(len(c.split())) for c in completions]\n"


def ran(folder, plugins, iterations=1, *more):
    settings = [*TINY, *SMALL, f"iterations={iterations}", f"plugins=[{plugins}]", *more]
    return ostinato.run("toy", folder, settings)


def rows_of(run, kind="policy", iteration=None):
    found = [row for row in run.metrics if row["kind"] == kind]
    return [row for row in found if iteration in (None, row["iteration"])]


@pytest.fixture
def words(tmp_path):
    """A plain function as the reward: the number of words."""
    file = tmp_path / "words.py"
    file.write_text(WORDS)
    return f"{{function_reward: {{functions: ['{file}:words']}}}}"


@pytest.mark.parametrize("method", ["online_dpo", "online_ipo", "xpo"])
def test_an_algorithm_acts_beside_liti_and_a_combination(tmp_path, method):
    run = ran(tmp_path / "run", f"concat, worst_case, liti, {method}", 2)
    rows = rows_of(run)
    assert len(rows) == 4
    assert all(row["actions"][f"{method}.policy_algorithm"] > 0 for row in rows)
    inits = [row["actions"] for row in rows_of(run, "actions", 2)]
    assert any(actions.get("liti.init_policy", 0) > 0 for actions in inits)


@pytest.mark.parametrize("method", ["online_dpo", "xpo"])
def test_the_reward_rises(tmp_path, words, method):
    more = "rl.rollouts=6", "rl.rollout_size=32"
    score = [row["score"] for row in rows_of(ran(tmp_path / "run", f"{words}, {method}", 1, *more))]
    assert sum(score[-3:]) / 3 > score[0] + 1


def test_nash_md_stands_beside_a_rule_and_plays_another_opponent_when_told(tmp_path, words):
    """At first policy and reference are one, and so is every mixture of them; later not."""
    wins = []
    for share in (0.0, 1.0):
        listed = f"{words}, {{nash_md: {{mixture: {share}}}}}, reinforce"
        rows = rows_of(ran(tmp_path / f"run-{share}", listed, 1, "rl.unfinished.penalty=0"))
        assert all(row["actions"]["nash_md.reward_transform"] > 0 for row in rows)
        assert all(row["reward"] == pytest.approx(row["nash_md/wins"] - 0.5) for row in rows)
        wins.append([row["nash_md/wins"] for row in rows])
    assert wins[0][0] == wins[1][0]
    assert wins[0][1] != wins[1][1]


def test_pilaf_and_ocrm_act_once_there_is_another_policy(tmp_path):
    run = ran(tmp_path / "run", "concat, pilaf, {ocrm: {power: 0.5}}", 2)
    acted = [{}, {}]
    for row in rows_of(run, "actions"):
        acted[row["iteration"] - 1] |= row["actions"]
    assert acted[0]["ocrm.refine_data"] == 0
    assert acted[1]["ocrm.refine_data"] == 16  # the pairs of the first iteration
    assert acted[1]["pilaf.draw_responses"] > 0
    shares = [row["ocrm/effective_share"] for row in run.metrics if "ocrm/effective_share" in row]
    assert shares[0] == 1 > shares[1]


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("{online_dpo: {bta: 1}}", "did you mean 'beta'"),
        ("{online_ipo: {tau: 0}}", "plugins.online_ipo.tau"),
        ("{xpo: {alpha: -1}}", "plugins.xpo.alpha"),
        ("{nash_md: {mixture: 1.5}}", "plugins.nash_md.mixture"),
        ("{pilaf: {share: 0}}", "plugins.pilaf.share"),
        ("{ocrm: {relative: 1}}", "plugins.ocrm.relative"),
        ("online_dpo, xpo", "hook 'policy_algorithm' has one owner"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path, setting, fault):
    with pytest.raises(ostinato.UserError) as error:
        ran(tmp_path / "run", setting)
    assert fault in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_halves_of_a_pair_are_never_parted(tmp_path):
    with pytest.raises(ostinato.UserError, match="which it keeps together"):
        ran(tmp_path / "run", "online_dpo", 1, "rl.minibatch=8", "rl.accumulate=8")
