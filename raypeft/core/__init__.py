"""Core: decisions; no Ray, torch, clock or disk."""
