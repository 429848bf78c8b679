"""Train: fine-tuning recipes that become adapters."""
