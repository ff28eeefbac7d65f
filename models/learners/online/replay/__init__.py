"""The newest rows, kept to learn them again."""
