"""The PPO checklist: each detail that must be right, and the tests that hold it.

From Huang et al. 2023, "The N implementation details of RLHF with PPO", and from bugs that users of
other libraries reported. A row without a test that exists fails here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
REWARDS = "core/engine/test_reward_training.py"
KL = "core/models/test_kl.py"
ENGINE = "core/engine/test_policy_training.py"
ROLLOUTS = "core/engine/test_rollouts.py"
POLICY = "core/models/test_policy.py"
SAMPLING = "core/models/test_generation.py"
PPO = "plugins/optimisers/test_ppo.py"

CHECKLIST: dict[str, list[tuple[str, str]]] = {
    "dropout is off in policy, reference, value and reward model": [
        (POLICY, "test_dropout_is_off_even_for_a_model_in_train_mode"),
        (ENGINE, "test_dropout_stays_off_while_training"),
        (
            REWARDS,
            "test_dropout_is_on_only_for_who_needs_it_and_off_again",
        ),
    ],
    "first minibatch: ratio 1, KL 0 at step 0": [
        (ENGINE, "test_the_first_minibatch_has_ratio_1_and_no_kl"),
        ("core/machine/test_backend.py", "test_bf16_bounds_the_ratio_of_the_first_minibatch"),
    ],
    "log-probs of policy, rollout and reference over the sampling temperature": [
        (POLICY, "test_logprobs_equal_plain_transformers"),
        (SAMPLING, "test_sampled_frequencies_agree_with_the_softmax"),
        (ENGINE, "test_the_first_minibatch_has_ratio_1_and_no_kl"),
    ],
    "a restricted sampler is refused": [(SAMPLING, "test_a_restricted_sampler_is_refused")],
    "pad differs from eos; padding, positions and batch size change nothing": [
        (
            "core/models/test_loading.py",
            "test_a_tokenizer_whose_pad_is_its_eos_gets_a_pad_and_the_model_a_row_for_it",
        ),
        (
            POLICY,
            "test_logprobs_and_values_depend_on_neither_padding_nor_batch_nor_neighbours",
        ),
        (SAMPLING, "test_the_cache_gives_the_distributions_of_teacher_forcing"),
    ],
    "the stop token is looked for in the response only": [
        (SAMPLING, "test_the_stop_token_is_looked_for_in_the_response_only"),
        (SAMPLING, "test_a_custom_stop_token_ends_a_response_and_eos_does_not"),
    ],
    "the reward lands on the last real token": [
        (ROLLOUTS, "test_the_reward_lands_on_the_last_real_token_and_the_kl_on_every_one"),
    ],
    "unfinished responses: subtract or replace": [
        (ROLLOUTS, "test_scores_are_clipped_then_unfinished_responses_penalised"),
    ],
    "per-token KL reward and its sign": [
        (ROLLOUTS, "test_the_reward_lands_on_the_last_real_token_and_the_kl_on_every_one"),
        (ENGINE, "test_with_a_kl_penalty_ppo_finds_the_closed_form_optimum"),
    ],
    "GAE, whitened over real tokens only": [
        (PPO, "test_advantages_are_gae_whitened_over_real_tokens"),
        (PPO, "test_the_defaults_are_those_of_the_paper"),
    ],
    "value loss clipped; the value head starts at zero": [
        (PPO, "test_loss_equals_a_loop_over_tokens"),
        (PPO, "test_gradients_equal_finite_differences_of_that_loop"),
        (POLICY, "test_the_value_head_starts_at_zero_on_the_trunk_or_a_copy_of_it"),
    ],
    "reward head N(0, 1/sqrt(d+1)) without bias; scores have one zero, on SFT responses": [
        (
            "core/models/test_reward_model.py",
            "test_head_is_normal_with_std_one_over_root_of_d_plus_one",
        ),
        (
            "core/engine/test_calibration.py",
            "test_sft_std_is_the_spread_on_the_ruler",
        ),
    ],
    "Adam eps, annealing, permutations, accumulation": [
        (ENGINE, "test_adam_has_eps_1e_5_and_the_learning_rate_is_annealed"),
        ("core/engine/test_policy_update.py", "test_learning_rate_schedules"),
        (ENGINE, "test_every_epoch_permutes_the_rollout_and_uses_each_response_once"),
        (ENGINE, "test_accumulation_changes_nothing"),
    ],
    "the reference is pi_k_init by identity": [
        (ENGINE, "test_the_reference_is_the_initial_policy_itself_and_neither_is_changed"),
    ],
    "optimiser, controller and step are in the checkpoint; draws are seeded by name": [
        ("core/engine/test_resume.py", "test_a_run_that_crashes_again_and_again"),
        ("core/config/test_draws.py", "test_a_generator_depends_on_its_name_alone"),
    ],
    "what is not finite stops the run": [
        (ENGINE, "test_a_nan_reward_stops_the_run"),
        (ENGINE, "test_a_nan_from_a_reward_transform_names_its_plugin"),
        (ENGINE, "test_a_nan_in_loss_or_gradient_stops_before_the_step"),
    ],
    "group baselines with one response a prompt, and sizes that do not fit, are refused": [
        (ENGINE, "test_group_rows_of_one_prompt_stand_together_and_odd_sizes_are_refused"),
        ("plugins/optimisers/test_rloo.py", "test_settings_out_of_range_are_one_sentence"),
        ("plugins/optimisers/test_grpo.py", "test_settings_out_of_range_are_one_sentence"),
    ],
    "the logged KL is the KL trained on; exact KL beside it": [
        (ENGINE, "test_the_logged_kl_is_the_kl_that_is_trained_on"),
        (
            "core/models/test_kl.py",
            "test_the_estimator_is_trained_on_logged_and_told_to_the_controller",
        ),
        (KL, "test_exact_kl_is_never_negative_and_is_the_mean_of_log_ratios"),
    ],
}


@pytest.mark.parametrize("detail", CHECKLIST)
def test_every_detail_has_its_tests(detail):
    assert CHECKLIST[detail]
    for file, name in CHECKLIST[detail]:
        tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in found, f"{detail}: {file} has no {name}"
