"""The data sets: one module a layout on disk."""
