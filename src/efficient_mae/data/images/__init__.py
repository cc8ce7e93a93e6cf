"""Images: decoded, cropped, augmented, normalised."""
