import copy

import numpy as np
import pytest
import torch

from latent_robust.core import derive_generator
from latent_robust.latent.base.components import Components
from latent_robust.latent.sampling import generate_images

from .tiny import make_pipeline

CAPTIONS = ["a red circle", "a blue square", "green"]
SIZE = (32, 24)


@pytest.fixture(scope="module")
def drawing():
    """(name) -> components and the arguments of a drawing, shared by this file: look only."""
    made = {}

    def prepared(name: str):
        if name not in made:
            components = Components.of(make_pipeline(name), name)
            arguments = {
                "conditions": components.encode_text(CAPTIONS),
                "empty": components.empty_text(),
                "size": SIZE, "steps": 2, "guidance": 3.0, "seed": 5,
            }  # fmt: skip
            made[name] = components, arguments
        return made[name]

    return prepared


def test_images_are_what_the_pipeline_draws_from_the_captions(drawing, family_name):
    components, arguments = drawing(family_name)
    drawn = generate_images(components, **arguments)
    assert drawn.shape == (3, 3, *SIZE)
    assert drawn.dtype == torch.float32
    assert drawn.abs().max() <= 1
    expected = make_pipeline(family_name)(
        CAPTIONS,
        **({} if family_name in ("sdxl", "flux") else {"negative_prompt": [""] * 3}),
        height=SIZE[0], width=SIZE[1], num_inference_steps=2, guidance_scale=3.0,
        generator=[derive_generator(5, "sample", i) for i in range(3)], output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close((drawn + 1) / 2, expected, rtol=0, atol=1e-5)
    assert drawn[0].ne(drawn[1]).any()


def test_a_image_does_not_depend_on_what_else_is_drawn(drawing, family_name):
    components, arguments = drawing(family_name)
    together = generate_images(components, **arguments)
    in_batches = generate_images(components, **arguments, batch_size=2)
    last = {key: value[2:] for key, value in arguments["conditions"].items()}
    alone = generate_images(components, **(arguments | {"conditions": last}), first=2)
    # Convolutions and matrix products of other batch sizes may sum in another order.
    torch.testing.assert_close(in_batches, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, together[2:], rtol=0, atol=1e-5)


def test_seed_caption_and_guidance_matter(drawing):
    components, arguments = drawing("sd1")
    drawn = generate_images(components, **arguments)
    assert torch.equal(drawn, generate_images(components, **arguments))
    for change in ({"seed": 6}, {"guidance": 1.0}, {"first": 1}):
        assert not torch.equal(drawn, generate_images(components, **(arguments | change)))


def test_training_is_not_disturbed(drawing, family_name):
    components, arguments = drawing(family_name)
    network, scheduler = components.network, components.pipeline.scheduler
    network.train()
    next(network.children()).eval()  # a part that was frozen
    modes = [module.training for module in network.modules()]
    parts = {key: id(value) for key, value in components.pipeline.components.items()}
    state = {key: copy.deepcopy(value) for key, value in vars(scheduler).items()}
    config, random = dict(components.pipeline.config), torch.get_rng_state()
    try:
        with torch.enable_grad():
            in_training = generate_images(components, **arguments)
        assert [module.training for module in network.modules()] == modes
    finally:
        network.eval()
    assert not in_training.requires_grad
    assert torch.equal(in_training, generate_images(components, **arguments))  # without dropout
    assert torch.equal(torch.get_rng_state(), random)
    assert {key: id(value) for key, value in components.pipeline.components.items()} == parts
    assert dict(components.pipeline.config) == config
    assert vars(scheduler).keys() == state.keys()
    for key, value in vars(scheduler).items():
        assert np.array_equal(value, state[key]), key


def test_nothing_is_printed(drawing, family_name, capfd):
    components, arguments = drawing(family_name)
    generate_images(components, **arguments)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def own(family_name, drawing):
    """Components that a test may change."""
    return Components.of(make_pipeline(family_name), family_name), drawing(family_name)[1]


def test_text_encoders_are_not_needed(own, drawing, family_name):
    components, arguments = own
    for name in components.text_encoders:
        setattr(components.pipeline, name, None)
    expected = generate_images(drawing(family_name)[0], **arguments)
    assert torch.equal(generate_images(components, **arguments), expected)


def test_a_network_in_bfloat16_with_encoders_in_float32(own, drawing, family_name):
    components, arguments = own
    components.network.to(torch.bfloat16)
    drawn = generate_images(components, **arguments)
    assert drawn.dtype == torch.float32
    # The noise is drawn in bfloat16 as well, from other bits: only kind and size can agree.
    assert drawn.isfinite().all()
    assert components.network.dtype == torch.bfloat16
    assert components.vae.dtype == torch.float32


def test_an_unloaded_vae_is_named(own):
    components, arguments = own
    components.unload_encoders()
    with pytest.raises(RuntimeError, match=r"VAE of this model were unloaded .* load the comp"):
        generate_images(components, **arguments)
