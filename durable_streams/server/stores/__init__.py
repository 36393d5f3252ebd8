"""Stores: where streams are kept."""
