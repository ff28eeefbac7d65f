"""From text and lists to typed columns."""
