"""The training loop and its parts, independent of data set, network and task."""
