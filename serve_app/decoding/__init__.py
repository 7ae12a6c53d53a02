"""Decode untrusted picture files into pixels, in processes that can be ended."""
