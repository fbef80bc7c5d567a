"""Raters that can be asked, one file each."""
