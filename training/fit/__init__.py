"""Fitting: the three stages, their losses and step, one device or many, and what TensorBoard shows."""
