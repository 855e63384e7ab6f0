"""Time the models and PyTorch's in one run."""
