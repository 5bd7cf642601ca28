"""What an evaluation shows beside its figures: curves, confusions, mistakes as pictures, all in one folder."""

from training.reports.report import Report

__all__ = ["Report"]
