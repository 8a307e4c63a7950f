"""More numbers for every evaluation."""
