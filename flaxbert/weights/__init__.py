"""Reading and writing checkpoints: Hugging Face folders, hub ids, sentence-transformers folders."""
