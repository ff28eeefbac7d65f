"""The loop, its work on each batch, and exact restarts."""
