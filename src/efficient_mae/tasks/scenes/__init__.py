"""Scenes of bundled garments, with their outlines: data for segmentation and detection that can be made anywhere."""
