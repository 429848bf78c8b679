"""Harness: the only package that calls lm-eval: freeze and score."""
