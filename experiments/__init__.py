"""Experiments with the package, which does not import them."""
