"""`python -m serve_app`: the same as `image-edits serve`."""

import sys

from serve_app import server

if __name__ == "__main__":
    server.main("python -m serve_app", sys.argv[1:])
