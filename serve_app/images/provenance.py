"""Where a picture comes from, in IPTC's words, and as a packet of XMP metadata.

https://cv.iptc.org/newscodes/digitalsourcetype/
"""

from typing import Literal

Source = Literal["compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"]
"""IPTC's name of where a picture comes from: an edit of another picture, or a model alone."""
EDITED: Source = "compositeWithTrainedAlgorithmicMedia"
GENERATED: Source = "trainedAlgorithmicMedia"

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def source_uri(source: Source) -> str:
    return f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"


def xmp_packet(source: Source) -> str:
    """Return the XMP packet that names the digital source type."""
    return _XMP.format(source=source_uri(source))
