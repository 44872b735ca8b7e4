"""From findings to a diagnosis, from a diagnosis to a plan. Pure."""
