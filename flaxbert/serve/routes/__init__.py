"""The interfaces of the server: those of text-embeddings-inference, OpenAI and KServe, our own, and what operators need."""
