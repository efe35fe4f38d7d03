"""Code generation: tests first, then code, then repair by reflection (Reflexion), on MBPP and HumanEval."""
