"""One engine without a server: what each stage of an edit costs."""
