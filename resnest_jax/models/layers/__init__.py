"""The layers of the networks."""
