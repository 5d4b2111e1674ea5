"""Runs between hospitals: the centre, and the process of a site beside Flower's SuperNode."""
