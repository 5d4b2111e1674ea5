"""Comparisons: methods x seeds on one data set, as a grid of ordinary runs."""

from pfedst.compare.grid import Grid, GridRun
from pfedst.compare.plan import Plan, Row, make_plan
from pfedst.compare.run import Comparison

__all__ = ["Comparison", "Grid", "GridRun", "Plan", "Row", "make_plan"]
