"""Names of fields: which of them a body may have, and how often."""

import difflib
from collections import Counter

from serve_app.errors import InvalidInput
from serve_app.forms.fields import EditFields, GenerationFields
from serve_app.request import needs_picture
from serve_app.settings import LimitSettings

# FormData serializers (axios, PHP, Rails) and OpenAI's clients put brackets after the name of a list.
SYNONYMS = {f"{name}[]": name for name in ("images", "image", "references", "mask", "prompt")}
PICTURE_FIELDS = frozenset({*SYNONYMS, *SYNONYMS.values()} - {"prompt", "prompt[]"})
FIELDS = frozenset({*SYNONYMS, *PICTURE_FIELDS, *EditFields.model_fields})
_ABOUT_PICTURES = PICTURE_FIELDS | {"fit", "input_fidelity"}
GENERATION_FIELDS = frozenset({"prompt[]", *GenerationFields.model_fields} - _ABOUT_PICTURES)


def check_name(name: str, fields: type[EditFields]) -> None:
    """Raise InvalidInput for a field that bodies with these text fields do not have."""
    known = FIELDS if fields is EditFields else GENERATION_FIELDS
    if name not in known:
        if name in _ABOUT_PICTURES:
            raise needs_picture(name)
        shown = name[:64]
        similar = difflib.get_close_matches(shown, sorted(known), n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        raise InvalidInput(f"Unknown field {shown!r}{hint}", param=shown)


def count(name: str, seen: Counter[str], limits: LimitSettings) -> None:
    """Add one value to those `seen`. Raise InvalidInput for more values than the field may have."""
    field = SYNONYMS.get(name, name)
    seen[field] += 1
    if field in PICTURE_FIELDS:
        _check_pictures(name, seen, limits)
    elif seen[field] > (limits.max_images if field == "prompt" else 1):
        times = f"more than {limits.max_images} times" if field == "prompt" else "more than once"
        raise InvalidInput(f"{name} is given {times}", param=name)


def _check_pictures(name: str, seen: Counter[str], limits: LimitSettings) -> None:
    if seen["image"] and seen["images"]:
        raise InvalidInput("image and images cannot be mixed: send every picture of a batch as `images`", param=name)
    if seen["image"] > 1 and seen["references"]:
        raise InvalidInput(
            f"{name}: the second and further pictures of `image` are references already; send them all as `references`",
            param=name,
        )
    if seen["mask"] > limits.max_images:
        raise InvalidInput(f"{name}: send one mask for all images, or one for each", param=name)
    if seen["images"] > limits.max_images:
        raise InvalidInput(f"At most {limits.max_images} images are allowed", param="images")
    # Of several `image`, the first is edited, and the others are references.
    if seen["image"] - 1 > limits.max_references or seen["references"] > limits.max_references:
        raise too_many_references(name, limits)


def too_many_references(name: str, limits: LimitSettings) -> InvalidInput:
    return InvalidInput(
        f"{name}: an edit looks at {limits.max_references} references beside its own picture at most; to edit each "
        "picture on its own, send them as `images`",
        param=name,
    )
