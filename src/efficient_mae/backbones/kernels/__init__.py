"""Attention and linear maps by device, and the operators that they are made of."""
