"""Data sets made from the data of other packages."""
