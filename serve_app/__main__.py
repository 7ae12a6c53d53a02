"""`python -m serve_app`: the same as `image-edits serve`."""

import sys

from serve_app.cli import serve

if __name__ == "__main__":
    serve.main("python -m serve_app", sys.argv[1:])
