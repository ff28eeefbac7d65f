"""The loop, its work on each batch, and what makes a restart exact."""
