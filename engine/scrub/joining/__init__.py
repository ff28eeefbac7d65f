"""The stage `join`: joins rows with the events of another stream."""
