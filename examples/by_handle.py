"""Edit by handle from another application of the same Ray cluster: no HTTP, no files, batches shared with all callers.

Run `python examples/by_handle.py photo.jpg out/` while the editor runs on the cluster of `RAY_ADDRESS`.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import PIL.Image
import ray
from ray import serve

from serve_app import EditRequest
from serve_app.errors import EditError
from serve_app.events import Completed, Done, Preview, Progress

PROMPTS = ("make the sky blue", "make it grayscale", "paint it red")


def editor() -> serve.handle.DeploymentHandle:
    return serve.get_deployment_handle("ImageEditor", app_name="image-edits")


@serve.deployment
class Postcards:
    """A deployment of another application. It could have its own routes; here its methods are called by handle."""

    async def sheet(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """Make one edit for each prompt, all at once, and return them side by side."""
        calls = [editor().edit.remote(EditRequest(images=[picture], prompt=prompt)) for prompt in PROMPTS]
        results = await asyncio.gather(*calls)
        edits = [result.images[0][0] for result in results]
        sheet = PIL.Image.new("RGB", (sum(edit.width for edit in edits), edits[0].height))
        for index, edit in enumerate(edits):
            sheet.paste(edit, (index * edit.width, 0))
        return sheet

    async def watch(self, picture: PIL.Image.Image) -> AsyncGenerator[tuple[str, PIL.Image.Image | None], None]:
        """Yield each event of one edit in words, with its picture if it has one."""
        request = EditRequest(images=[picture], prompt=PROMPTS[0], n=2, partial_images=2)
        async for event in editor().options(stream=True).edit_stream.remote(request):
            match event:
                case Progress(steps_done, steps, place):
                    yield f"place {place} in the queue" if place else f"{steps_done} of {steps} steps", None
                case Preview(_, variant, preview, pixels):
                    yield f"preview-{variant}-{preview}.png", PIL.Image.fromarray(pixels)
                case Completed(_, variant, seed, pixels):
                    yield f"final-{variant}-seed-{seed}.png", PIL.Image.fromarray(pixels)
                case Done(timings):
                    yield f"done: {timings.denoise_s:.2f} s of denoising", None


def main(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture = PIL.Image.open(source)
    picture.load()

    # From a script, blocking.
    result = editor().edit.remote(EditRequest(images=[picture], prompt=PROMPTS[0], seed=7)).result()
    result.images[0][0].save(folder / "sync.png")

    # Errors keep their types, and name the wrong field.
    try:
        editor().edit.remote(EditRequest(images=[picture], prompt=PROMPTS[0], size="9000x9000")).result()
    except EditError as error:
        print(f"{error.code}, {error.param}: {error.message}")

    # From another deployment, with async and await; and as a stream.
    postcards = serve.run(Postcards.bind(), name="postcards", route_prefix=None)  # type: ignore[attr-defined]
    postcards.sheet.remote(picture).result().save(folder / "sheet.png")
    for text, image in postcards.options(stream=True).watch.remote(picture):
        print(text)
        if image is not None:
            image.save(folder / text)
    serve.delete("postcards")


if __name__ == "__main__":
    ray.init(address="auto", log_to_driver=False)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
