"""Measuring a model: protocols, metrics, calibration, and reports."""
