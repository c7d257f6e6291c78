"""The one path of every backend call."""
