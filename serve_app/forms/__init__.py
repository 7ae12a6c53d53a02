"""Read HTTP bodies, multipart or JSON, into validated edit requests."""
