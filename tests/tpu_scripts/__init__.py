"""Tests of the launchers, with stand-ins for the programs that they call."""
