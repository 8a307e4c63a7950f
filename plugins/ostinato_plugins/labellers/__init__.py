"""Who says which response is better."""
