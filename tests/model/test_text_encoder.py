"""Reading of texts and pictures against transformers' own forward of the text encoder."""

import weakref

import pytest
import torch

from tests.model.edits import condition_of, request
from tests.model.reading import GRIDS, PAD, picture_of, random_text_encoder, read, text_with


@pytest.mark.parametrize("grid_positions", [True, False])
@torch.no_grad()
def test_the_states_are_those_of_transformers_to_the_bit(grid_positions):
    text_encoder = random_text_encoder()
    torch.manual_seed(1)
    pictures = [picture_of(grid) for grid in GRIDS]
    # The first two pictures have a second text, and the last two texts have several pictures.
    seen = [*([index] for index in range(len(GRIDS))), [0], [1], [1, 0, 3], [2, 2]]
    texts = [
        torch.cat([text_with(text_encoder, GRIDS[index], 5 + place, 3 * place + 1) for index in of_text])
        for place, of_text in enumerate(seen)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD)
    expected = text_encoder(
        input_ids=ids,
        attention_mask=(torch.arange(ids.shape[1])[None] < torch.tensor([[len(text)] for text in texts])).long(),
        pixel_values=torch.cat([pictures[index][0] for of_text in seen for index in of_text]),
        image_grid_thw=torch.cat([pictures[index][1] for of_text in seen for index in of_text]),
        mm_token_type_ids=(ids == text_encoder.config.image_token_id).int() if grid_positions else None,
        output_hidden_states=True,
    ).hidden_states[-1]
    states = read(text_encoder, texts, pictures, seen, grid_positions=grid_positions)
    for state, row, text in zip(states, expected, texts, strict=True):
        assert torch.equal(state, row[: len(text)])


def test_a_guided_picture_goes_through_the_vision_tower_once(random_model):
    patches = []
    hook = random_model.text_encoder.model.visual.register_forward_pre_hook(
        lambda module, args: patches.append(len(args[0]))
    )
    requests = [request(guidance_scale=each) for each in (4.0, 1.0)]
    prepared = [random_model.prepare(condition_of(random_model, each)) for each in requests]
    encodings = random_model.encode(prepared)
    hook.remove()
    assert [encoding.negative is None for encoding in encodings] == [False, True]
    assert patches == [sum(len(patches) for each in prepared for patches, _ in each.seen)]


def test_no_layer_but_the_last_keeps_its_output_nor_its_keys():
    text_encoder = random_text_encoder()
    outputs: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    caches: list[object] = []
    layers = text_encoder.model.language_model.layers
    for layer in layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: caches.append(kwargs["past_key_values"]), with_kwargs=True
        )
    text_encoder.model.language_model.norm.register_forward_hook(
        lambda module, args, output: alive.extend(output is not None for output in (each() for each in outputs))
    )
    read(text_encoder, [text_with(text_encoder, (4, 4), 3, 3)], [picture_of((4, 4))], [[0]])
    assert alive == [False] * (len(layers) - 1) + [True]
    assert caches == [None] * len(layers)
