"""Task automation: a planner chooses tools of a model hub and how they feed each other, then they run."""
