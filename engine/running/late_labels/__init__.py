"""Labels that come later than their rows."""
