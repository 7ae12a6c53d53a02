"""The comparison of servers under load: the same edits, at the same moments, for each contender in turn."""
