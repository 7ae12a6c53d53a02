"""Jobs: edits that outlive their request, and the process that runs them."""
