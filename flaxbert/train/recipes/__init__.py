"""Whole jobs put together from the parts: what a command runs."""
