"""Losses of the reward model."""
