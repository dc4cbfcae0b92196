"""Clients of ``flaxbert serve``: ``Client`` waits, ``AsyncClient`` is awaited. Neither needs JAX.

Example:
  >>> from flaxbert import Client
  >>> with Client("http://localhost:8080") as client:  # doctest: +SKIP
  ...     vectors = client.embed(["A fine film.", "A bad one."])
"""

from flaxbert.client.asynchronous import AsyncClient
from flaxbert.client.blocking import Client
from flaxbert.client.conversation import StreamAnswer

__all__ = ["AsyncClient", "Client", "StreamAnswer"]
