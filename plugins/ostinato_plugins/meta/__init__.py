"""Displaced gradients of the reward model."""
