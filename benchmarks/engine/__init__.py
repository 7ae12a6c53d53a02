"""One engine without a server: the cost of each stage of an edit."""
