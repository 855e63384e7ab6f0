"""Data sets as records by index, images still encoded."""
