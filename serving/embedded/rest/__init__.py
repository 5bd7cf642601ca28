"""TF Serving's REST API, Prometheus metrics and a page to try it."""
