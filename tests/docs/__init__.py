"""The pages of docs/ against the code: their tables, names and links, and every command and client on them, run."""
