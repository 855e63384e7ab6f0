"""The networks: jax, flax and numpy alone."""
