"""Edits that outlive their HTTP request."""
