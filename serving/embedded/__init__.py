"""The embedded server: TF Serving's gRPC services for one machine."""
