"""The online decision: what challenger traffic shows, and what to do next."""
