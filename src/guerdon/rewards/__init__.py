"""From labels to reward columns."""
