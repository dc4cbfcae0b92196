"""What the server can do with a model: requests become rows of tokens, and what a function makes of them becomes answers."""
