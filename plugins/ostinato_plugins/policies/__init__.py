"""Where each iteration's policy starts."""
