"""The file formats that weights come in, one module each. ``flaxbert.weights.readers`` is the way in from outside."""
