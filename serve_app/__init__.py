"""Serve image edits: many callers' edits share every forward of the model, and each gets exactly its own pictures."""

from serve_app.request import EditRequest, EditResult

__all__ = ["EditRequest", "EditResult"]
