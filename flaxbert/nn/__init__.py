"""Flax NNX modules: layers, attention, blocks, heads and the network that puts them together."""
