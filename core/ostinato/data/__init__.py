"""Prompts, and the preference pairs that are collected on them."""
