"""How preference data is combined and cleaned."""
