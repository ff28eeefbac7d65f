"""Files, locks, signals and the environment of the process."""
