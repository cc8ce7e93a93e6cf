"""Methods of pre-training; each is a guest of the engine."""
