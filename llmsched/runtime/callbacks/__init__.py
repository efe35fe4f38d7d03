"""Webhooks: the end of a job told to the URL its client named, signed, again and again until somebody takes it."""
