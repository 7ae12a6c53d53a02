"""The store of what outlives a request and a process: records in one part, the bytes that belong to them in another."""
