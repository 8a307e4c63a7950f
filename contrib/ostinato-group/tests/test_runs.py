"""Each method in a run of the toy world, and the settings that are refused."""

import pytest

import ostinato

TINY = ("iterations=1", "rl.rollouts=2", "rl.rollout_size=16", "rl.minibatch=8")
SMALL = ("reward_model.updates=3", "prompts.preference=16", "prompts.evaluation=8")
METHODS = ["dr_grpo", "gspo", "cispo", "remax", "dapo"]


def policy_rows(tmp_path, *listed):
    run = ostinato.run("toy", tmp_path / "run", [*TINY, *SMALL, f"plugins=[{', '.join(listed)}]"])
    return [row for row in run.metrics if row["kind"] == "policy"]


@pytest.mark.parametrize("method", METHODS)
def test_it_acts_beside_gradient_regularisation(tmp_path, method):
    rows = policy_rows(tmp_path, method, "gradient_regularisation")
    assert len(rows) == 2
    for row in rows:
        assert row["actions"][f"{method}.policy_algorithm"] > 0
        assert row["actions"]["gradient_regularisation.policy_meta_update"] > 0
        assert row["gradient_regularisation/norm"] > 0
        assert row["terms"]["log/ratio"] == pytest.approx(1, abs=0.2)
        assert row["attempts"] == 1  # scores of a reward model never tie in a whole group


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("{dr_grpo: {response: 4}}", "did you mean 'responses'"),
        ("{dapo: {overlong: 2}}", "plugins.dapo.overlong"),
        ("{gspo: {clip_low: -1}}", "plugins.gspo.clip_low"),
        ("{cispo: {clip_high: 0}}", "plugins.cispo.clip_high"),
        ("{remax: {clip: 0}}", "plugins.remax.clip"),
        ("{gradient_regularisation: {strength: 0}}", "plugins.gradient_regularisation.strength"),
        ("{dr_grpo: {responses: 5}}", "rl.rollout_size: 16 is no multiple of the 5 responses"),
        ("dr_grpo, gspo", "hook 'policy_algorithm' has one owner"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path, setting, fault):
    with pytest.raises(ostinato.UserError) as error:
        policy_rows(tmp_path, setting)
    assert fault in str(error.value)
    assert len(str(error.value).splitlines()) == 1
