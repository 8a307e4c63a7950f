"""Embedded worlds: prompts, a small policy, a reward-model start and a gold reward in one place."""
