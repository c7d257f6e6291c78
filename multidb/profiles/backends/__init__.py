"""Where profiles can be kept."""
