"""Tests of flaxbert; the folders mirror those of the sources."""
