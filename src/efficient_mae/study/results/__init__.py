"""What came of a study: collected, compared, decided, drawn and written."""
