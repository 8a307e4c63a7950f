"""Policies, reward models and gold, and what they take and answer."""
