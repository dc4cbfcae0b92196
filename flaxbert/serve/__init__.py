"""One server for every encoder task: batching, engines, routes, versions that change under load."""
