"""The training loop and its parts: they know no data set, network or task by name."""
