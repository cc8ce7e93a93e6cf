"""transformers' models, both ways."""
