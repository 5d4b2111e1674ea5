"""Comparisons: methods x seeds on one data set, as a grid of ordinary runs."""

from pfedst.comparison.grid import Grid, GridRun
from pfedst.comparison.plan import Plan, Row, make_plan
from pfedst.comparison.run import Comparison

__all__ = ["Comparison", "Grid", "GridRun", "Plan", "Row", "make_plan"]
