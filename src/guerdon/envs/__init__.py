"""Worlds in which tasks are carried out, one file each."""
