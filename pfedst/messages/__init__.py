"""What travels between server and client, and the checks at that border."""
