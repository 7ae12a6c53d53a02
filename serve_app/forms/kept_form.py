"""Forms as bytes, for a later process, which may run a later version of this code."""

import pickle
from dataclasses import fields

from serve_app.forms.form import EditForm
from serve_app.request import EditRequest


def dump(form: EditForm) -> bytes:
    """Return the form as bytes: fields by name, since another version would misread pickled objects."""
    request = {name: getattr(form.request, name) for name in EditRequest.model_fields}
    rest = {field.name: getattr(form, field.name) for field in fields(EditForm) if field.name != "request"}
    return pickle.dumps((request, rest))


def load(data: bytes) -> EditForm:
    """Return the form of `dump`. Call only with bytes of our own processes, since unpickling runs code.

    Raise any Exception for a form that this version cannot read.
    """
    request, rest = pickle.loads(data)
    return EditForm(EditRequest(**request), **rest)
