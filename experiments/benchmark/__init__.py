"""How fast the models are, side by side with PyTorch's in one run."""
