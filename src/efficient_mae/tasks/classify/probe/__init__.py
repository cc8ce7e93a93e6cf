"""`emae probe`: judges of frozen features that can tell encoders apart, and how sure each difference is."""
