"""Files of weights as the methods' own authors publish them."""
