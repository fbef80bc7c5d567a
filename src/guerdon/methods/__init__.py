"""Protocols of questions and the reading of their answers, one file each."""
