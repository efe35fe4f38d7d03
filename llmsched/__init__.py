"""llmsched: a scheduling service for compound LLM applications in front of vLLM."""

__version__ = "0.1.0"
