"""Make batches of images from a data set's name: sources, transforms, loader."""
