"""Text in: the corpus inside the package, splits, and streams of segments that keep memory aligned with its row."""
