"""Weights in and out: files, the hub, names of torch, artefacts."""
