"""Untrusted picture files in, pixels out."""

import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from serve_app.decoding.files import decode, measure
from serve_app.errors import InvalidInput
from serve_app.images.colour import profile_of_code_points
from serve_app.images.geometry import Size
from serve_app.images.pixels import from_pil
from serve_app.request import Pixels
from serve_app.settings import LimitSettings
from tests.pictures import PHONE, file_of, one_bit_png, photo, png_chunk

LIMITS = LimitSettings()


def refusal(data: bytes, index: int = 0, limits: LimitSettings = LIMITS) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(data, index, limits)
    assert caught.value.param == "images"
    assert " at 0x" not in caught.value.message
    assert "BytesIO" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_decode_to_the_same_pixels(file_format: str) -> None:
    pixels = decode(file_of(PIL.Image.fromarray(photo()), file_format), 0, LIMITS).pixels
    np.testing.assert_array_equal(pixels, photo())
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "AVIF", "JPEG2000", "MPO", "GIF"])
def test_lossy_files_decode_to_nearly_the_same_pixels(file_format: str) -> None:
    pixels = decode(file_of(PIL.Image.fromarray(photo()), file_format), 0, LIMITS).pixels
    assert np.abs(pixels.astype(int) - photo()).mean() < 8


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    for file_format in ("GIF", "WEBP", "PNG"):
        data = file_of(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50)
        red, green, blue = decode(data, 0, LIMITS).pixels[4, 4]
        assert red > 200
        assert green < 50
        assert blue < 50


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = file_of(PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert np.abs(decode(data, 0, LIMITS).pixels[8, 8].astype(int) - [255, 0, 0]).max() < 16


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = decode(file_of(PIL.Image.fromarray(values), "PNG"), 0, LIMITS).pixels
    assert pixels[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_nan_is_refused() -> None:
    data = file_of(PIL.Image.fromarray(np.array([[np.nan, 1.0]], np.float32)), "TIFF")
    assert refusal(data, 2) == "Invalid image format at index 2: it holds NaN or infinity"


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (PIL.Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (PIL.Image.new("L", (2, 2), 7), 7),
        (PIL.Image.new("P", (2, 2), 0), 0),
    ],
)
def test_a_transparent_colour_is_laid_on_white(image: Any, key: Any) -> None:
    assert (decode(file_of(image, "PNG", transparency=key), 0, LIMITS).pixels == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    corner = np.zeros((16, 32, 3), np.uint8)
    corner[:8, :8] = 255  # white where the photo's own top left is
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(file_of(PIL.Image.fromarray(corner), file_format, exif=exif), 0, LIMITS).pixels
    assert pixels.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    row, column = {1: (2, 2), 2: (2, -3), 3: (-3, -3), 4: (-3, 2), 5: (2, 2), 6: (2, -3), 7: (-3, -3), 8: (-3, 2)}[
        orientation
    ]
    assert pixels[row, column].min() > 200


def test_a_photo_with_damaged_exif_is_still_read() -> None:
    data = file_of(PIL.Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0garbage, no TIFF header")
    assert decode(data, 0, LIMITS).pixels.shape == (48, 64, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_files_are_refused(file_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = file_of(PIL.Image.fromarray(noise), file_format)
    assert refusal(data[: int(len(data) * share)], 1).startswith("Invalid image format at index 1: ")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_are_read_or_refused_and_nothing_else(seed: int) -> None:
    random = np.random.default_rng(seed)
    file_format = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "JPEG2000"][seed % 8]
    data = bytearray(file_of(PIL.Image.fromarray(photo()), file_format))
    for position in random.integers(0, len(data), 8):
        data[position] = random.integers(0, 256)
    try:
        assert decode(bytes(data), 0, LIMITS).pixels.shape[2] == 3
    except InvalidInput as error:
        assert error.message  # noqa: PT017, either outcome is right


def test_what_is_no_picture_is_refused_in_plain_words() -> None:
    assert refusal(b"hello, I am a text file\n") == (
        "Invalid image format at index 0: not a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, "
        "JPEG XL, JPEG 2000 or PPM file, "
        "or its header is damaged"
    )
    assert refusal(b"", 3) == "Invalid image format at index 3: the file is empty"


def test_formats_that_run_programs_are_not_read() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert "not a JPEG" in refusal(eps)


@pytest.mark.parametrize("side", [15_000, 20_000])
def test_too_many_pixels_are_refused(side: int) -> None:
    data = one_bit_png(side, side)
    assert len(data) < 200_000
    assert refusal(data, 5).startswith("Image at index 5 is too large: ")


def test_a_decompression_bomb_is_refused_without_its_memory() -> None:
    code = (
        "import resource, sys, time\n"
        "from serve_app.errors import InvalidInput\n"
        "from serve_app.decoding.files import decode, prepare_process\n"
        "from serve_app.settings import LimitSettings\n"
        "import PIL.Image; PIL.Image.init(); prepare_process()\n"
        "data = sys.stdin.buffer.read()\n"
        "before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "try:\n    decode(data, 0, LimitSettings())\n"
        "except InvalidInput: print('refused')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], input=one_bit_png(20_000, 20_000), capture_output=True)
    verdict, figures = run.stdout.decode().splitlines()
    grown_kib, cpu_s = map(float, figures.split())
    assert verdict == "refused"
    assert grown_kib < 10 * 1024  # its pixels would take 400 MB
    assert cpu_s < 1


def test_long_strips_are_refused_before_decoding() -> None:
    expected = "Image at index 1 is too long: 1000x100 has an aspect ratio above 8:1"
    assert refusal(one_bit_png(1000, 100), 1) == expected


def test_the_limit_itself_is_allowed() -> None:
    limits = LimitSettings(max_image_pixels=64 * 48)
    data = file_of(PIL.Image.fromarray(photo()), "PNG")
    assert decode(data, 0, limits).pixels.shape == (48, 64, 3)
    assert "64x48" in refusal(data, 0, LimitSettings(max_image_pixels=64 * 48 - 1))


# --- files that every viewer opens --------------------------------------------------------------------------------


def png_with(*chunks: bytes, pixels: Pixels | None = None) -> bytes:
    """Return a PNG file of a photo with these chunks before its pixels."""
    data = file_of(PIL.Image.fromarray(photo() if pixels is None else pixels), "PNG")
    start = data.index(b"IDAT") - 4
    return data[:start] + b"".join(chunks) + data[start:]


def with_bad_crc(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


PROFILE_3_MB = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iCCP", b"large\0\0" + PROFILE_3_MB),
        png_chunk(b"iCCP", b"not packed\0\0" + b"plain"),
        png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"iTXt", b"comment\0\0\0\0\0" + bytes(45_000_000)),
        png_chunk(b"gAMA", b"\0"),
        png_chunk(b"tEXt", b"comment\0text") * 1000,
        with_bad_crc(png_chunk(b"tEXt", b"comment\0text")),
        with_bad_crc(png_chunk(b"tIME", bytes(7))),
        with_bad_crc(png_chunk(b"gAMA", (100_000).to_bytes(4, "big"))),
    ],
    ids=["iCCP of 3 MB", "broken iCCP", "zTXt of 3 MB", "iTXt of 45 MB", "short gAMA", "many tEXt", "CRC of tEXt",
         "CRC of tIME", "CRC of gAMA"],
)  # fmt: skip
def test_what_does_not_bear_on_a_png_is_passed_over(chunk: bytes) -> None:
    np.testing.assert_array_equal(decode(png_with(chunk), 0, LIMITS).pixels, photo())


def test_a_png_whose_pixels_are_damaged_is_refused() -> None:
    data = file_of(PIL.Image.fromarray(photo()), "PNG")
    place = data.index(b"IDAT") + 30
    assert refusal(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]).endswith("damaged or incomplete")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "subsampling": 0}])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_is_whole(options: dict[str, Any], missing: int) -> None:
    data = file_of(PIL.Image.fromarray(photo(200, 133)), "JPEG", **options)
    np.testing.assert_array_equal(decode(data[:-missing], 0, LIMITS).pixels, decode(data, 0, LIMITS).pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("missing", [8, 100, 1000])
def test_a_jpeg_that_lacks_more_is_refused(options: dict[str, Any], missing: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = file_of(PIL.Image.fromarray(noise), "JPEG", **options)
    assert refusal(data[:-missing]).endswith("damaged or incomplete")


def test_a_heic_of_a_phone_is_upright_and_in_srgb() -> None:
    picture = decode(PHONE.read_bytes(), 0, LIMITS)
    assert picture.pixels.shape == (64, 48, 3)
    assert picture.sent_size == Size(48, 64)
    np.testing.assert_allclose(picture.pixels[8, -8], 255, atol=2)
    # By colour-science; the file's own compression moved it by 1.
    np.testing.assert_allclose(picture.pixels[40:, :].mean((0, 1)), (216, 69, 50), atol=1.5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (333, 217), (96, 32), (1200, 160), (160, 1200)])
def test_jpeg_xl_is_read(mode: str, width: int, height: int) -> None:
    image = PIL.Image.fromarray(photo(width, height)).convert(mode)
    for in_container in (True, False):
        data = file_of(image, "JXL", lossless=True, use_container=in_container)
        np.testing.assert_array_equal(decode(data, 0, LIMITS).pixels, np.asarray(image.convert("RGB")))
        assert measure(data, 0, LIMITS) == Size(width, height)


def test_the_size_of_a_jpeg_xl_is_in_its_first_bytes() -> None:
    stream = file_of(PIL.Image.fromarray(photo(333, 217)), "JXL", lossless=True, use_container=False)
    container = bytes.fromhex("0000000c4a584c200d0a870a00000014667479706a786c20000000006a786c20")

    def box(kind: bytes, content: bytes) -> bytes:
        return (8 + len(content)).to_bytes(4, "big") + kind + content

    # A codestream in parts, behind a box of something else.
    parts = [bytes(4) + stream[:50], (2**31 + 1).to_bytes(4, "big") + stream[50:]]
    data = container + box(b"Exif", bytes(30)) + b"".join(box(b"jxlp", part) for part in parts)
    np.testing.assert_array_equal(decode(data, 0, LIMITS).pixels, photo(333, 217))
    for beginning in (stream[:20], data[:120], data[:32] + (1).to_bytes(4, "big") + b"jxlc" + bytes(8) + stream[:20]):
        assert measure(beginning, 0, LIMITS) == Size(333, 217)


def test_a_jpeg_xl_of_too_many_pixels_is_refused_by_its_header() -> None:
    data = file_of(PIL.Image.fromarray(photo()), "JXL", lossless=True)
    few = LimitSettings(max_image_pixels=64 * 48 - 1)
    # Cut off behind the header, so that it could not be decoded.
    for call in (decode, measure):
        with pytest.raises(InvalidInput, match="Image at index 2 is too large: 64x48"):
            call(data[:20], 2, few)


def tiff(photometric: int, planes: int, samples: NDArray[np.uint16]) -> bytes:
    """Return an uncompressed TIFF file of 16-bit `samples`, planes × height × width."""
    count, height, width = samples.shape
    offsets, size = [], height * width * 2
    entries: list[tuple[int, int, list[int]]] = [
        (256, 3, [width]), (257, 3, [height]), (258, 3, [16] * count), (259, 3, [1]), (262, 3, [photometric]),
        (277, 3, [count]), (278, 3, [height]), (279, 4, [size] * count), (284, 3, [planes]),
    ]  # fmt: skip
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    extra = b""
    offsets = [start + 64 + size * k for k in range(count)]
    fields = b""
    for tag, kind, values in sorted([*entries, (273, 4, offsets)]):
        packed = b"".join(value.to_bytes(2 if kind == 3 else 4, "little") for value in values)
        if len(packed) > 4:
            place, extra = start + len(extra), extra + packed
            packed = place.to_bytes(4, "little")
        fields += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(entries) + 1) + fields + bytes(4)
    return head + extra.ljust(64, b"\0") + samples.astype("<u2").tobytes()


def test_in_a_16_bit_tiff_with_white_as_zero_0_is_white() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None, None].repeat(8, 1)
    expected = np.rint(255 - ramp[0] / 257).astype(np.uint8)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(decode(tiff(0, 1, ramp), 0, LIMITS).pixels, expected)
    np.testing.assert_array_equal(decode(tiff(1, 1, ramp), 0, LIMITS).pixels, 255 - expected)


def test_a_tiff_with_a_16_bit_plane_for_each_colour_is_refused() -> None:
    planes = (photo().transpose(2, 0, 1).astype(np.uint16)) * 257
    assert "colours together, not a plane for each" in refusal(tiff(2, 2, planes), 4)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%PDF-1.7\n", "Portable Document Format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "Scalable Vector Graphics"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (bytes.fromhex("1f8b0800") + bytes(30), "GZIP"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(30), "MPEG-4"),
    ],
)
def test_a_refusal_says_what_the_file_is(data: bytes, name: str) -> None:
    assert name in refusal(data)


# --- colours ------------------------------------------------------------------------------------------------------

# (200, 80, 60) of Display P3 and of linear light are, in sRGB, what is below, by colour-science 0.4.7.
PATCH = np.full((8, 8, 3), (200, 80, 60), np.uint8)
POINTS = {"P3": (12, 13), "sRGB": (1, 13), "unknown": (2, 2)}
CICP = {name: png_chunk(b"cICP", bytes([*points, 0, 1])) for name, points in POINTS.items()}
GAMMA_1 = png_chunk(b"gAMA", (100_000).to_bytes(4, "big"))
GAMMA_SRGB = png_chunk(b"gAMA", (45_455).to_bytes(4, "big"))
PROFILE_P3 = png_chunk(b"iCCP", b"P3\0\0" + zlib.compress(profile_of_code_points(12, 13) or b""))
SRGB = png_chunk(b"sRGB", b"\0")


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([CICP["P3"]], (216, 69, 50)),
        ([PROFILE_P3], (216, 69, 50)),
        ([GAMMA_1], (229, 151, 133)),
        ([GAMMA_SRGB], (200, 80, 60)),
        ([SRGB], (200, 80, 60)),
        # The first of these that a file has counts: cICP, iCCP, sRGB, gAMA.
        ([CICP["P3"], GAMMA_1], (216, 69, 50)),
        ([CICP["sRGB"], PROFILE_P3, GAMMA_1], (200, 80, 60)),
        ([PROFILE_P3, GAMMA_1], (216, 69, 50)),
        ([GAMMA_1, SRGB], (200, 80, 60)),
        # What is unknown or damaged does not count.
        ([CICP["unknown"]], (200, 80, 60)),
        ([CICP["unknown"], PROFILE_P3], (216, 69, 50)),
        ([with_bad_crc(CICP["P3"])], (200, 80, 60)),
    ],
)
def test_the_colours_of_a_png_become_srgb(chunks: list[bytes], expected: tuple[int, ...]) -> None:
    pixels = decode(png_with(*chunks, pixels=PATCH), 0, LIMITS).pixels
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "TIFF", "AVIF", "PNG"])
def test_profiles_in_files_of_every_format_count(file_format: str) -> None:
    data = file_of(PIL.Image.fromarray(PATCH), file_format, icc_profile=profile_of_code_points(12, 13), quality=100,
                   lossless=True)  # fmt: skip
    np.testing.assert_allclose(decode(data, 0, LIMITS).pixels.mean((0, 1)), (216, 69, 50), atol=2.5)


# --- large pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_large_picture_is_shrunk(file_format: str) -> None:
    few = LimitSettings(shrink_above_pixels=2**16)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = PIL.Image.fromarray(photo(1200, 900))
    picture = decode(file_of(image, file_format, exif=exif, quality=95), 0, few)
    assert picture.sent_size == Size(900, 1200)
    assert picture.pixels.shape == (295, 221, 3)
    expected = image.resize((295, 221), PIL.Image.Resampling.LANCZOS).transpose(PIL.Image.Transpose.ROTATE_270)
    assert np.abs(picture.pixels.astype(int) - np.asarray(expected)).mean() < 1.5


@pytest.mark.parametrize("mode", ["1", "P", "PA", "L", "LA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_of_every_mode_are_shrunk(mode: str) -> None:
    image = PIL.Image.fromarray(photo(600, 400)[..., 0])
    if mode in ("I;16", "I"):
        image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    elif mode == "F":
        image = PIL.Image.fromarray(np.asarray(image).astype(np.float32) / 255)
    else:
        image = (image.convert("RGB") if mode == "CMYK" else image).convert(mode)
    shrunk = from_pil(image.copy(), 2**16)
    assert shrunk.shape[:2] == (209, 313)
    whole = PIL.Image.fromarray(from_pil(image)).resize((313, 209), PIL.Image.Resampling.LANCZOS)
    assert np.abs(shrunk.astype(int) - np.asarray(whole)).mean() < (12 if mode == "1" else 3)
