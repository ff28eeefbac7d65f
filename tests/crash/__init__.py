"""The failure kit; see README.md beside this file."""
