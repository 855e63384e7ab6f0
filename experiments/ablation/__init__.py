"""Train each cell of a grid with several seeds; test which differences exceed the noise."""
