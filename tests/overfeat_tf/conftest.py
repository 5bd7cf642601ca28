"""Fixtures of this folder."""

from small_classifiers import classifiers
from small_network import network

__all__ = ["classifiers", "network"]
