"""Ways to shape the reward of an Ostinato run, one module a method."""
