"""Comparison methods, one file each, over the same public interface and entry points as anyone's."""
