"""Registries: where releases are published for people and other tools."""
