"""Stores on disk: decoded images, or the output of a frozen encoder for each image, computed once."""
