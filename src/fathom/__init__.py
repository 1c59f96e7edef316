"""Fathom."""
