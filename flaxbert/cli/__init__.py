"""The command line: one thin file per command that parses, calls a recipe and prints."""
