"""One module per peer; each offers ``prepare(settings) -> (step function, facts)`` and runs in a process of its own."""
