"""Merges agreements into one by graph of thoughts: drafts, scores, the best aggregated, scored, and improved."""
