"""Attacks made of attacks."""
