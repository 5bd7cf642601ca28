"""Decode encoded images safely, in the graph."""
