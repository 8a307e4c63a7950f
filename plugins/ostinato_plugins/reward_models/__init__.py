"""How reward models are combined, and reward models with several heads."""
