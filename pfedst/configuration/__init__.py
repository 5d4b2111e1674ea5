"""Configurations as text: read them safely, and read those of older versions."""
