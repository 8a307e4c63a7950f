"""Policy optimisation from groups of responses, for Ostinato: GRPO's successors, and ReMax."""
