"""Tasks: a model with its loss and metrics."""
