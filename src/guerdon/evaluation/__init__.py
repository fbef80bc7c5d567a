"""Tasks, statistics, and the quality of raters."""
