"""`emae export`: files of trained weights for other libraries."""
