"""Train every cell of a grid with several seeds, and say which differences are more than noise."""
