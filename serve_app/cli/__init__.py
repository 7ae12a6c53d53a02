"""The command `image-edits`: edit, serve, check, key."""
