"""Multidb beside the drivers and what one would use instead: `python -m benchmarks --quick`. No wheel has this."""
