"""The classes of shapes, as labels of metrics."""

import pytest

from serve_app.deployments.metrics import forward_labels, shape_labels
from serve_app.images.geometry import Size


@pytest.mark.parametrize(
    ("size", "area", "aspect"),
    [
        (Size(1024, 1024), "1", "square"),
        (Size(1216, 864), "1", "landscape"),
        (Size(864, 1216), "1", "portrait"),
        (Size(1024, 960), "1", "square"),
        (Size(1448, 1448), "2", "square"),
        (Size(512, 512), "1/4", "square"),
        (Size(16, 16), "1/16", "square"),
        (Size(9999, 9999), "4", "square"),
    ],
)
def test_shapes_fall_into_a_few_classes(size: Size, area: str, aspect: str):
    assert shape_labels(size, 1024 * 1024) == {"area": area, "aspect": aspect}


def test_a_forward_of_different_shapes_is_mixed():
    square, wide, small = Size(1024, 1024), Size(1448, 720), Size(512, 512)
    assert forward_labels([square, square], 1024 * 1024) == {"area": "1", "aspect": "square"}
    assert forward_labels([square, wide], 1024 * 1024) == {"area": "1", "aspect": "mixed"}
    assert forward_labels([square, small, wide], 1024 * 1024) == {"area": "mixed", "aspect": "mixed"}
