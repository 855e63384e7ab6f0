"""Weights: files and directories, published weights, conversion, export."""
