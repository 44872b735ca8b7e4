"""Training: recipes, the loop, and backends that run jobs."""
