"""Engines: a loaded base that answers requests for its subjects."""
