"""Training loops, which know no algorithm."""
