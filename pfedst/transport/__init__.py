"""How requests reach clients and replies come back."""
