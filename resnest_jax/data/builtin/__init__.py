"""Data sets made of what other packages ship."""
