"""The tap cache: stores the output of a frozen encoder for each image, computed once."""
