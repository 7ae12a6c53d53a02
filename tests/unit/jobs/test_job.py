"""The state of a job."""

from typing import Any

import pytest

from serve_app.jobs.job import Job


def test_pictures_are_in_the_order_of_their_last_events() -> None:
    job, event = Job(), {"type": "image_edit.partial_image"}
    for place, blob in (("0-0", "preview"), ("0-1", "preview"), ("0-0", "output")):
        picture: Any = {"blob": blob, "event": event}
        job.put_picture(place, picture)
    assert [(place, picture["blob"]) for place, picture in job.pictures.items()] == [
        ("0-1", "preview"),
        ("0-0", "output"),
    ]


def test_what_was_stored_comes_back_and_another_version_is_refused() -> None:
    job = Job(caller="ann", starts=3, open_bytes=5, is_accepted=True)
    job.end()
    found = Job.load(job.dump())
    assert found.dump() == job.dump()
    with pytest.raises(ValueError, match="another version"):
        Job.load(job.dump().replace(b'"version":1', b'"version":2'))
