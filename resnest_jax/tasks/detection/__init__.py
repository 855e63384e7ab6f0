"""Detection of objects by their boxes."""
