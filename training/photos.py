"""`python -m training.photos`: photographs with free licences, out of Debian packages, as small JPEG files.

Nothing is installed: packages are downloaded with `apt-get download`, which needs no root, and unpacked into a folder.
PHOTOS.md lists author and licence of each photograph. The photographs inside scikit-image and scikit-learn are for
evaluation, and never used in training.
"""

import argparse
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from training.scenes import scene

Pixels = NDArray[np.uint8]

SHORT_SIDE = 512
_JPEG_QUALITY = 92
_TABLE = Path(__file__).parent / "PHOTOS.md"
# Far from the seeds of training, which count upwards from the seed of a run.
_HELD_OUT_SEED = 2**62


@dataclass(frozen=True)
class Photo:
    """A photograph: its file inside a package, with author and licence as the package states them."""

    package: str
    path: str
    author: str
    licence: str

    @property
    def name(self) -> str:
        """The name of our JPEG file: that of the original, or of its folder if the original's name is only a size."""
        path = Path(self.path)
        stem = path.parts[-4] if path.stem[0].isdigit() else path.stem
        return f"{self.package}.{stem}.jpg"


@dataclass(frozen=True)
class Held:
    """A picture for evaluation only: height × width × 3, and the mask of its sky, height × width, if it is known."""

    name: str
    pixels: Pixels
    sky_mask: NDArray[np.bool_] | None = None


def _plasma(name: str, author: str) -> Photo:
    path = f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg"
    return Photo("plasma-workspace-wallpapers", path, author, "GPL-2+ (metadata: LGPL-3)")


def _lomiri(series: str, name: str, author: str, licence: str) -> Photo:
    return Photo(f"lomiri-wallpapers-{series}", f"usr/share/backgrounds/{name}.jpg", author, licence)


def _mate(name: str, author: str) -> Photo:
    return Photo("mate-backgrounds", f"usr/share/backgrounds/mate/nature/{name}.jpg", author, "GPL-2+")


def _palapeli(name: str, author: str) -> Photo:
    path = f"usr/share/palapeli/collection/{name}.jpg"
    return Photo("palapeli-data", path, author, "GPL-2+ (metadata: public domain)")


PHOTOS = (
    _plasma("BytheWater", "Maciej Wiklo"),
    _plasma("ColdRipple", "Risto Saukonpää"),
    _plasma("ColorfulCups", "Dmitri Popov"),
    _plasma("DarkestHour", "Risto Saukonpää"),
    _plasma("EveningGlow", "Ian Hex"),
    _plasma("FallenLeaf", "Martin Klapetek"),
    _plasma("Grey", "Sigi Sagi"),
    _plasma("Kite", "Risto Saukonpää"),
    _plasma("OneStandsOut", "Risto Saukonpää"),
    _plasma("Path", "Risto Saukonpää"),
    _plasma("summer_1am", "Risto Saukonpää"),
    _lomiri("16.04", "aitzgorri_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    _lomiri("16.04", "analogpattern_by_Peter_Nerlich", "Peter Nerlich", "CC-BY-SA-4.0"),
    _lomiri("16.04", "Bridge_by_Sander_Klootwijk", "Sander Klootwijk", "CC-BY-SA-4.0"),
    _lomiri("16.04", "Dragonfly_by_Bolly", "“Bolly”", "CC-BY-SA-4.0"),
    _lomiri("16.04", "free_by_Peter_Nerlich", "Peter Nerlich", "CC-BY-SA-4.0"),
    _lomiri("16.04", "friends_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    _lomiri("16.04", "greentock_by_Peter_Nerlich", "Peter Nerlich", "CC-BY-SA-4.0"),
    _lomiri("16.04", "life_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    _lomiri("16.04", "picosdeeuropa_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    _lomiri("16.04", "Picture_0B_by_freespace", "Trevor “Freespace”", "CC-BY-4.0"),
    _lomiri("16.04", "Picture_1A_by_freespace", "Trevor “Freespace”", "CC-BY-4.0"),
    _lomiri("16.04", "seeding_by_Clements_Engelhardt", "Clemens Engelhardt", "CC0-1.0"),
    _lomiri("16.04", "sunset_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    _lomiri("16.04", "Wine_by_Jakkub_Mede", "Jakub Mede", "CC-BY-4.0"),
    _lomiri("20.04", "Infinite-Sea_by_Aury88", "Aury88", "CC-BY-SA-3.0"),
    _lomiri("20.04", "Kleiber_by_Lukas_Baubkus", "Lukas Baubkus", "CC-BY-SA-3.0"),
    _mate("Aqua", "Charles Barbin"),
    _mate("Blinds", "Lennart Poettering, Andrea Cimitan"),
    _mate("Dune", "Marco Cogoni, Hylke Bons"),
    _mate("FreshFlower", "Jens Ansorg"),
    _mate("Garden", "Charles Barbin"),
    _mate("GreenMeadow", "Timothy Schellhase, Lapo Calamandrei"),
    _mate("LadyBird", "Charles Barbin"),
    _mate("RainDrops", "“blackcombwhistler07”"),
    _mate("Storm", "Sergey Nazarov"),
    _mate("TwoWings", "Charles Barbin, Hylke Bons"),
    _mate("Wood", "Jean-François Fortin Tam"),
    _mate("YellowFlower", "Charles Barbin"),
    _palapeli("cincinnati-bridge", "Derek Jensen"),
    _palapeli("citrus-fruits", "US Department of Agriculture"),
    _palapeli("european-honey-bee", "John Severns"),
)


def prepare(folder: Path) -> None:
    """Fill `folder` with a JPEG of every photograph, short side 512 pixels, and write PHOTOS.md.

    Raises subprocess.CalledProcessError if apt cannot download, FileNotFoundError if a package has changed.
    """
    work = folder.with_name(folder.name + ".packages")
    packages = sorted({photo.package for photo in PHOTOS})
    versions = {package: _unpack(package, work) for package in packages}
    folder.mkdir(parents=True, exist_ok=True)
    for photo in PHOTOS:
        _shrink(work / photo.package / photo.path, folder / photo.name)
    shutil.rmtree(work)
    _TABLE.write_text(_table(versions))


def load(folder: Path) -> list[Pixels]:
    """Return the photographs that `prepare` wrote, in the order of their names.

    Raises FileNotFoundError if there are none.
    """
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(f"no photographs in {folder}: run `python -m training.photos --folder {folder}`")
    return [np.asarray(PIL.Image.open(path).convert("RGB")) for path in paths]


def held_out() -> dict[str, Pixels]:
    """Return the colour photographs inside scikit-image and scikit-learn, by name. For evaluation only.

    Raises ModuleNotFoundError if a package is not installed.
    """
    science = _package_folder("skimage") / "data"
    learn = _package_folder("sklearn") / "datasets" / "images"
    files = {
        "astronaut": science / "astronaut.png",
        "chelsea": science / "chelsea.png",
        "china": learn / "china.jpg",
        "coffee": science / "coffee.png",
        "flower": learn / "flower.jpg",
        "motorcycle": science / "motorcycle_left.png",
        "rocket": science / "rocket.jpg",
    }
    return {name: np.asarray(PIL.Image.open(path).convert("RGB")) for name, path in files.items()}


def evaluation_pictures(size: tuple[int, int], count: int, *, sky: bool = False) -> list[Held]:
    """Return `count` different pictures of height × width `size`, always the same ones.

    They are windows of the held-out photographs or, with `sky`, scenes with a known sky, which is neither blue, orange
    nor dark before the edit.
    """
    if sky:
        return [_held_scene(index, size) for index in range(count)]
    photographs = list(held_out().items())
    return [_window(*photographs[i % len(photographs)], i // len(photographs), size) for i in range(count)]


def _held_scene(index: int, size: tuple[int, int]) -> Held:
    made = scene(np.random.default_rng(_HELD_OUT_SEED + index), size, skies=("pale", "overcast", "pink", "green"))
    return Held(f"scene-{index}", made.pixels, made.sky_mask)


def _window(name: str, pixels: Pixels, number: int, size: tuple[int, int]) -> Held:
    """Return a window of a photograph: number 0 is the largest possible, later ones are smaller and lie elsewhere."""
    height, width = size
    rng = np.random.default_rng([number, len(name)])
    largest = min(pixels.shape[0] / height, pixels.shape[1] / width)
    scale = largest if number == 0 else max(min(1.0, largest), largest * rng.uniform(0.55, 0.75))
    tall, wide = int(height * scale), int(width * scale)
    top, left = (round((have - want) * rng.uniform()) for have, want in zip(pixels.shape, (tall, wide), strict=False))
    crop = PIL.Image.fromarray(pixels[top : top + tall, left : left + wide])
    return Held(f"{name}-{number}", np.asarray(crop.resize((width, height), PIL.Image.Resampling.LANCZOS)))


def _package_folder(package: str) -> Path:
    """Return the folder of a package without importing it, which takes seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is missing: pip install --group training")
    return Path(spec.origin).parent


def _unpack(package: str, work: Path) -> str:
    """Download and unpack a package below `work`, once, and return its version."""
    work.mkdir(parents=True, exist_ok=True)
    if not list(work.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", package], cwd=work, check=True)
    deb = next(iter(work.glob(f"{package}_*.deb")))
    subprocess.run(["dpkg-deb", "-x", deb, work / package], check=True)
    version = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True)
    return version.stdout.strip()


def _shrink(source: Path, target: Path) -> None:
    with PIL.Image.open(source) as image:
        # The decoder itself halves as often as it can, which is many times faster for large photographs.
        image.draft("RGB", (2 * SHORT_SIDE, 2 * SHORT_SIDE))
        rgb = image.convert("RGB")
    scale = SHORT_SIDE / min(rgb.size)
    size = (round(rgb.width * scale), round(rgb.height * scale))
    rgb.resize(size, PIL.Image.Resampling.LANCZOS).save(target, quality=_JPEG_QUALITY)


def _table(versions: dict[str, str], photos: Sequence[Photo] = PHOTOS) -> str:
    lines = [
        "# Photographs used in training",
        "",
        "Written by `python -m training.photos`. None is part of this repository: the recipe takes them from Debian",
        "packages. Author and licence are those of the package's `debian/copyright`; plasma-workspace-wallpapers and",
        "palapeli-data name authors in the metadata beside each file, which state a second, equally free licence.",
        "Left out: drawings and renderings, and photographs whose licence the package does not state clearly.",
        "",
        "| package | version | file | author | licence |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {p.package} | {versions[p.package]} | {p.path} | {p.author} | {p.licence} |" for p in photos]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.photos", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/photos"), help="folder of the JPEG files (%(default)s)"
    )
    prepare(parser.parse_args().folder)


if __name__ == "__main__":
    main()
