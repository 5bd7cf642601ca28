"""Fixtures of this folder."""

from small_classifiers import classifiers

__all__ = ["classifiers"]
