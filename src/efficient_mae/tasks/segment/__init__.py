"""Semantic segmentation: a class for each pixel, by UPerNet on an encoder's features (Table 10)."""
