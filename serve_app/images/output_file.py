"""Files of outputs and previews, with the marks that say to a program that a model has made or edited the picture."""

import numpy as np
from numpy.typing import NDArray

from serve_app.images.encoding import OutputFormat, encode
from serve_app.images.provenance import Source, xmp_packet
from serve_app.images.signing import load_signer
from serve_app.settings import ProvenanceSettings


def encode_marked(
    pixels: NDArray[np.uint8],
    output_format: OutputFormat,
    compression: int,
    source: Source,
    settings: ProvenanceSettings,
) -> bytes:
    """Encode as `encode` does, with the marks that the settings ask for. The pixels are the same without them.

    Too slow for an event loop. Raises ValueError, and c2pa's errors, if the file cannot be signed.
    """
    data = encode(pixels, output_format, compression, xmp_packet(source) if settings.xmp else "")
    if settings.c2pa_certificate is None:
        return data
    # The last change of the bytes: the signature covers all others.
    return load_signer(settings).sign(data, output_format, source)
