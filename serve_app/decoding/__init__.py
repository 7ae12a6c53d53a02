"""Decode untrusted picture files to pixels, in processes that can be killed."""
