"""The photos of strangers."""

from itertools import pairwise

from benchmarks.edits import Effort, photos
from benchmarks.load.loads import photo_loads
from serve_app.images.geometry import Geometry
from serve_app.models import loading
from serve_app.models.pipeline import NATIVE_AREA
from serve_app.settings import ModelSettings

EFFORT = Effort()


def test_neighbours_among_photos_seldom_have_one_shape():
    edits = photos(EFFORT)
    assert all(edit.request().size is None for edit in edits)
    model = loading.load(ModelSettings(native_area=EFFORT.photo_side**2))
    shapes = [model.pipeline.geometry.auto(edit.picture) for edit in edits]
    for load in photo_loads(edits, lock_per_s=2, seconds=20, burst=64):
        arrivals = [shapes[arrival.kind] for arrival in load.trace(0).arrivals]
        pairs = list(pairwise(arrivals))
        assert sum(one == other for one, other in pairs) <= 0.25 * len(pairs), load.name


def test_each_aspect_ratio_has_a_shape_of_its_own_at_the_published_size():
    # A token of the published model is 16 pixels square.
    shapes = {Geometry(NATIVE_AREA, 16).auto(edit.picture) for edit in photos(EFFORT)}
    assert len(shapes) == len(photos(EFFORT))
