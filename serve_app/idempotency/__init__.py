"""Idempotency: an edit runs once, however many requests are sent with its Idempotency-Key."""
