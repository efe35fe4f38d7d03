"""llm_compiler: answers a question with a plan of searches and calculations that run in parallel where they can."""
