"""The texts of the GPU benchmark. They also train its tokenizer, so that a word is about one token."""

PROMPT = "Replace the sky behind the house with a calm evening sky and keep everything else exactly as it is"
"""The instruction of all sections but the one about lengths: some twenty tokens, as callers write."""

BLANK = " "
"""The negative prompt of a request without one. With guidance every batch has texts of two lengths."""

SENTENCES = (
    "make it winter",
    "paint the old wooden door in a dark green and leave the wall of bricks around it untouched",
    "turn the photograph into a watercolour with soft edges, visible paper and pale colours, and keep the faces of the "
    "two people in the foreground so exact that their friends would know them at once",
    "remove the cars and the signs from the street, let the light come low from the left as on a morning in autumn, "
    "add a thin fog between the houses at the far end, keep the tower and its clock as they are, give the shadows a "
    "touch of blue, make the wet stones in front reflect the windows, and let nobody be seen who was not there before",
)
"""Instructions from three words to eighty."""


def equal_prompts(count: int) -> list[str]:
    """Return the same instruction for each of `count` samples."""
    return [PROMPT] * count


def unequal_prompts(count: int) -> list[str]:
    """Return instructions of lengths as different as callers write them."""
    return [SENTENCES[index % len(SENTENCES)] for index in range(count)]
