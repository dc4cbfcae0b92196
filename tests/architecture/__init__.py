"""Tests of the rules of the house: who imports whom, how long, typed and documented things are, what never appears."""
