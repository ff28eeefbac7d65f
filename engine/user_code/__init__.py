"""The code of users: imported, checked against its contract, called, and its answers checked."""
