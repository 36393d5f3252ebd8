"""Durable streams for Python."""
