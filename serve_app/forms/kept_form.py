"""A form as bytes, for a later process, which may run a later version of this code."""

import pickle
from dataclasses import fields

from serve_app.forms.form import EditForm
from serve_app.request import EditRequest


def dump(form: EditForm) -> bytes:
    """By the names of the fields and not as the objects, which another version would misread."""
    request = {name: getattr(form.request, name) for name in EditRequest.model_fields}
    rest = {field.name: getattr(form, field.name) for field in fields(EditForm) if field.name != "request"}
    return pickle.dumps((request, rest))


def load(data: bytes) -> EditForm:
    """Of our own processes only: unpickling runs code. Raises whatever comes of a form that this version has not."""
    request, rest = pickle.loads(data)
    return EditForm(EditRequest(**request), **rest)
