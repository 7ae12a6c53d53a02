"""Edits that run once, however often they are sent under one Idempotency-Key."""
