"""Learning while the service runs: fits in a process of their own, the profiles at work, and what they foresee."""
