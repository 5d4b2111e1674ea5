"""The server's half of a run: method state, participation, merge, records."""
