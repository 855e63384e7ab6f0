"""What a task is made of: model, loss and metrics."""
