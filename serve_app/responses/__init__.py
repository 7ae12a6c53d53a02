"""Responses: schemas on the wire, JSON and event-stream bodies, error bodies, the log line."""
