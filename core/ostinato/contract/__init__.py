"""What plugins stand on: the hooks, their arguments and answers, and how they are called."""
