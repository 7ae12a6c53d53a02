"""The stock pipeline behind a lock, in a plain Starlette application under uvicorn: one request at a time."""

import asyncio
import threading
from dataclasses import asdict

import uvicorn

from benchmarks.load.contenders import program
from benchmarks.load.contenders.edge import create_edge
from benchmarks.load.contenders.stock import Counter, StockEditor
from serve_app.request import EditRequest, EditResult


def main() -> None:
    arguments = program.parser(__doc__).parse_args()
    settings, counter = program.settings(arguments), Counter()
    editor, lock = StockEditor(settings.model, counter), asyncio.Lock()

    async def edit(request: EditRequest) -> EditResult:
        async with lock:
            return (await asyncio.to_thread(editor.edit, [request]))[0]

    app = create_edge(edit, settings)
    server = uvicorn.Server(uvicorn.Config(app, program.HOST, arguments.port, log_level="warning"))

    def answer_commands() -> None:
        program.answer(arguments.answers, {"counts": lambda: asdict(counter.counts())})
        server.should_exit = True

    threading.Thread(target=answer_commands, daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
