"""The data plane: gateway, workers, and the backends that start workers."""
