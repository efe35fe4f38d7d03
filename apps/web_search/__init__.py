"""web_search: answers a question step by step, with thoughts, searches and look-ups (ReAct on HotpotQA)."""
