"""The version, in a module that imports nothing, so that `pfedst --version` answers at once."""

__version__ = "0.2.0"
