"""A small serving engine: many requests share one GPU's memory for keys and values."""
