"""Finished runs, read back: tables, curves and pages."""
