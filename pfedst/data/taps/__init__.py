"""The tap cache: what a frozen encoder says of an image, computed once."""
