"""Whole jobs: the functions behind the commands."""
