"""From images to the batches that a step is given."""
