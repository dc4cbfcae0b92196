"""Benchmarks: programs that compare flaxbert with its peers in one run, print a table and write JSON."""
