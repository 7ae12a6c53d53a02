"""Our application, as `make run` serves it; `--join` and `--order` as in the settings."""

import ray
from ray import serve

from benchmarks.load.contenders import program
from benchmarks.load.contenders.naive import start_cluster
from serve_app.app import APP_NAME, build


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("--join", default="step")
    parser.add_argument("--order", default="shortest")
    arguments = parser.parse_args()
    start_cluster(arguments.port, cpus=2)
    serve.run(build(program.settings(arguments, join=arguments.join, order=arguments.order)), name=APP_NAME)
    editor = serve.get_deployment_handle("ImageEditor", app_name=APP_NAME)

    def counts() -> dict[str, int]:
        stats = editor.stats.remote().result()
        return {"forwards": stats.forwards, "sample_steps": stats.sample_steps}

    program.answer(arguments.answers, {"counts": counts})
    ray.shutdown()


if __name__ == "__main__":
    main()
