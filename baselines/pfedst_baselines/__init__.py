"""Comparison methods, one file each. They use the public interface and entry points, as any other package does."""
