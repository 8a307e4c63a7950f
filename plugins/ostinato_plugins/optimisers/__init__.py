"""Policy algorithms and KL controllers."""
