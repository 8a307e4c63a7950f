"""Selection for Ostinato: which pairs, rows, prompts, rollouts and policies a run goes on with."""
