"""What a run writes, and how it is sure to be there."""
