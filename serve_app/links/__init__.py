"""Links to pictures, which open for a while without an API key."""
