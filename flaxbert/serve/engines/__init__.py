"""What runs a model for the server, behind one small interface."""
