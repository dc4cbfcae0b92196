"""Foundations that know nothing of a model: axes, typed arrays, trees, rules, sharding, runtime."""
