"""The report: a thin view of what a run recorded."""
