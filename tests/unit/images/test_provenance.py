"""The marks of output files, as other programs read them."""

import io
import xml.etree.ElementTree as ElementTree
from typing import get_args

import numpy as np
import PIL.Image
import pytest

from serve_app.images.encoding import OutputFormat, encode
from serve_app.images.output_file import encode_marked
from serve_app.images.provenance import EDITED, GENERATED, Source
from serve_app.settings import ProvenanceSettings
from tests.pictures import photo, source_type

FORMATS = get_args(OutputFormat)


@pytest.mark.parametrize("source", [EDITED, GENERATED])
@pytest.mark.parametrize("compression", [80, 100])
@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_says_that_a_model_made_it(output_format: OutputFormat, compression: int, source: Source) -> None:
    data = encode_marked(photo(), output_format, compression, source, ProvenanceSettings())
    assert source_type(data) == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"


@pytest.mark.parametrize("compression", [80, 100])
@pytest.mark.parametrize("output_format", FORMATS)
def test_the_mark_changes_no_pixel_and_no_colour_profile(output_format: OutputFormat, compression: int) -> None:
    marked = PIL.Image.open(
        io.BytesIO(encode_marked(photo(), output_format, compression, EDITED, ProvenanceSettings()))
    )
    plain = PIL.Image.open(io.BytesIO(encode(photo(), output_format, compression)))
    np.testing.assert_array_equal(np.asarray(marked), np.asarray(plain))
    assert {name: value for name, value in marked.info.items() if "xmp" not in str(name).lower()} == plain.info


@pytest.mark.parametrize("output_format", FORMATS)
def test_without_the_mark_a_file_is_as_it_was(output_format: OutputFormat) -> None:
    data = encode_marked(photo(), output_format, 90, EDITED, ProvenanceSettings(xmp=False))
    assert data == encode(photo(), output_format, 90)
    assert source_type(data) is None
    assert b"xmp" not in data.lower()


@pytest.mark.parametrize(
    ("output_format", "place"),
    [("png", b"iTXtXML:com.adobe.xmp\0\0\0\0\0<?xpacket"), ("jpeg", b"http://ns.adobe.com/xap/1.0/\0<?xpacket")],
)
def test_the_packet_stands_uncompressed_where_the_standard_has_it(output_format: OutputFormat, place: bytes) -> None:
    assert place in encode_marked(photo(), output_format, 90, EDITED, ProvenanceSettings())


def test_the_packet_of_webp_is_a_chunk_that_its_header_names() -> None:
    data = encode_marked(photo(), "webp", 90, EDITED, ProvenanceSettings())
    assert data[12:16] == b"VP8X"
    assert data[20] & 0b100
    start = data.index(b"XMP ")
    packet = data[start + 8 : start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")]
    assert ElementTree.fromstring(packet.decode().removeprefix("\ufeff")).tag == "{adobe:ns:meta/}xmpmeta"
