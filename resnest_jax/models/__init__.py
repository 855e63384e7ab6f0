"""The networks, which need only jax, flax and numpy."""
