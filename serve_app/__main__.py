"""`python -m serve_app`: the same as `image-edits serve`."""

from serve_app.cli.main import serve

if __name__ == "__main__":
    serve(prog_name="python -m serve_app")
