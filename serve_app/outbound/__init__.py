"""Requests of this server to others: to allowed hosts only, at public addresses."""
