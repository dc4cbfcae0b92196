"""Compressing whole models: what is measured of a model on data, and which leaf gets how many bits."""
