"""How good a model is: metrics, intervals and reports over predictions and labels."""
