"""Communication and memory of a training step, on CPU devices and on TPUs that are not there."""
