"""Rewards that know what they do not know: nine methods for Ostinato, one a file."""
