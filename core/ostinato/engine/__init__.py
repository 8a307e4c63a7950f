"""What makes the steps of the loop: the session, its stages, training and evaluation."""
