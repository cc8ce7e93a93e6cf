"""Object detection: boxes and masks, by Mask R-CNN on an encoder's features (Table 10)."""
