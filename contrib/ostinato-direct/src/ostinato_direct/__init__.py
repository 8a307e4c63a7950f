"""Policies and pairs straight from preferences, for Ostinato: DPO's online kin, games, sampling."""
