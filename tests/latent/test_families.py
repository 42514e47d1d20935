"""Each family does what its own diffusers pipeline does, and obeys the shift identity."""

import copy

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FluxPipeline,
)

from latent_robust.core import Parameterization
from latent_robust.errors import InputError
from latent_robust.latent.base.components import Components
from latent_robust.latent.base.families import time_ids
from latent_robust.latent.base.library_logging import silence_libraries
from latent_robust.latent.base.recognise import pipeline_class, recognise

from .tiny import FAMILIES, make_pipeline

HEIGHT, WIDTH = 32, 40
CAPTIONS = ["a photo of a cat", "", "two red dogs on a very long blue sofa " * 20]
PARAMETERIZATIONS = {
    "sd1": "epsilon",
    "sd2": "v_prediction",
    "sdxl": "epsilon",
    "sd3": "flow",
    "flux": "flow",
}


def network_of(pipeline):
    return getattr(pipeline, recognise(pipeline, "tiny").network_name)


def changed(network, **config):
    """A network of the same kind with another configuration."""
    kept = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return type(network)(**{**kept, **config}).eval()


def recorded_sampling(pipeline, **options):
    """Two steps of the pipeline.  =>  keyword arguments and output of each call of its network."""
    calls = []
    network = network_of(pipeline)

    def record(_, args, kwargs, output):
        names = ("sample", "timestep")
        calls.append(({**dict(zip(names, args, strict=False)), **kwargs}, output[0]))

    handle = network.register_forward_hook(record, with_kwargs=True)
    try:
        pipeline(
            "a photo of a cat",
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            **options,
        )
    finally:
        handle.remove()
    return calls


def unpacked(tensor):
    """FLUX's tokens as latents; others as they are."""
    if tensor.ndim == 4:
        return tensor
    return FluxPipeline._unpack_latents(tensor, HEIGHT, WIDTH, vae_scale_factor=2)


def random_batch(pipeline, batch=3):
    """=> family, noisy (batch, c, h, w), t (batch,), text, sizes."""
    family = recognise(pipeline, "tiny")
    generator = torch.Generator().manual_seed(1)
    channels = pipeline.vae.config.latent_channels
    noisy = torch.randn(batch, channels, HEIGHT // 2, WIDTH // 2, generator=generator)
    t = family.process(pipeline).draw_times(batch, generator)
    with torch.no_grad():
        text = family.encode_text(pipeline, CAPTIONS[:batch])
    return family, noisy, t, text, torch.tensor([[HEIGHT, WIDTH]] * batch)


def sd3_without_t5():
    pipeline = make_pipeline("sd3")
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    return pipeline


def flux_schnell():
    pipeline = make_pipeline("flux")
    pipeline.transformer = changed(pipeline.transformer, guidance_embeds=False)
    return pipeline


VARIANTS = {"sd3 without T5": sd3_without_t5, "flux schnell": flux_schnell}


def test_every_family_is_tested():
    assert set(PARAMETERIZATIONS) == set(FAMILIES)


@pytest.mark.parametrize("name", [*PARAMETERIZATIONS, *VARIANTS])
def test_denoiser_is_what_the_pipeline_asks_its_network(pipelines, name):
    pipeline = VARIANTS[name]() if name in VARIANTS else pipelines(name)
    family_name = name.split()[0]
    family, _, _, text, _ = random_batch(pipeline, batch=1)
    sizes = torch.tensor([[HEIGHT, WIDTH]])
    denoise = family.denoiser(network_of(pipeline), text, sizes)
    length = (
        {"max_sequence_length": family.text_limit(pipeline)[1]} if family_name == "flux" else {}
    )
    calls = recorded_sampling(pipeline, guidance_scale=1.0, **length)
    assert len(calls) >= 2  # PNDM begins with an extra call
    for asked, answer in calls:
        noisy = unpacked(asked.get("sample", asked.get("hidden_states")))
        t = asked["timestep"].reshape(1)
        # FLUX is given t / 1000; the discrete families accept whole steps only.
        t = t * 1000 if family_name == "flux" else t
        t = t if family_name in ("sd3", "flux") else t.long()
        # Not bit-equal for FLUX only: t / 1000 * 1000 rounds.
        tolerance = 1e-6 if family_name == "flux" else 0.0
        torch.testing.assert_close(denoise(noisy, t), unpacked(answer), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [*PARAMETERIZATIONS, *VARIANTS])
def test_text_is_encoded_alike_without_the_network(pipelines, name):
    """FLUX asks it how far to read, SD 3 without T5 how wide its absence is."""
    pipeline = VARIANTS[name]() if name in VARIANTS else pipelines(name)
    whole = Components.of(pipeline, "tiny")
    alone = whole.without(whole.family.network_name)
    assert not isinstance(alone.network, torch.nn.Module)
    torch.testing.assert_close(alone.encode_text(CAPTIONS), whole.encode_text(CAPTIONS))
    assert alone.cut_captions(CAPTIONS) == whole.cut_captions(CAPTIONS)


def test_text_is_what_the_pipeline_encodes(pipelines, family_name):
    pipeline = pipelines(family_name)
    with silence_libraries(), torch.no_grad():
        match family_name:
            case "sd1" | "sd2":
                expected = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)[:1]
            case "sdxl":
                expected = pipeline.encode_prompt(CAPTIONS)[::2]
            case "sd3":
                expected = pipeline.encode_prompt(CAPTIONS, CAPTIONS, CAPTIONS)[::2]
            case "flux":
                expected = pipeline.encode_prompt(CAPTIONS, CAPTIONS)[:2]
        text = recognise(pipeline, "tiny").encode_text(pipeline, CAPTIONS)
    for value, reference in zip(text.values(), expected, strict=True):
        assert len(value) == len(CAPTIONS)
        assert torch.equal(value, reference)


def test_empty_text_is_what_guidance_compares_with(pipelines, family_name):
    pipeline = pipelines(family_name)
    with torch.no_grad():
        empty = recognise(pipeline, "tiny").empty_text(pipeline)
    if family_name == "flux":  # distilled: it compares with a caption only when told to
        asked, _ = recorded_sampling(pipeline, negative_prompt="", true_cfg_scale=3.0)[1]
    else:
        asked, _ = recorded_sampling(pipeline, guidance_scale=7.0)[0]
    assert torch.equal(empty["text"][0], asked["encoder_hidden_states"][0])
    if "pooled" in empty:
        added = asked.get("added_cond_kwargs") or {}
        pooled = added.get("text_embeds", asked.get("pooled_projections"))
        assert torch.equal(empty["pooled"][0], pooled[0])


def test_shift_identity_holds_for_the_familys_scheduler(pipelines, family_name):
    pipeline = pipelines(family_name)
    process = recognise(pipeline, "tiny").process(pipeline)
    assert process.parameterization == PARAMETERIZATIONS[family_name]
    generator = torch.Generator().manual_seed(2)
    t = process.draw_times(16, generator)
    sample, noise, w = (
        torch.randn(16, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    alpha, sigma = (c.double() for c in process(t, sample))
    target, shift, to_sample = (
        getattr(process.parameterization, name) for name in ("target", "shift", "to_sample")
    )
    prediction, moved = (target(sample, n, alpha, sigma) for n in (noise, noise + w))
    torch.testing.assert_close(moved - prediction, shift(w, alpha, sigma))
    noisy = alpha * sample + sigma * noise
    shifted = prediction + shift(w, alpha, sigma)
    # alpha and sigma come in float32, so alpha^2 + sigma^2 = 1 to 1e-7, over an alpha of 0.07.
    for at, given in ((noisy, prediction), (noisy + sigma * w, shifted)):
        torch.testing.assert_close(to_sample(at, given, alpha, sigma), sample, rtol=0, atol=1e-4)


def test_the_process_is_the_schedulers(pipelines, family_name):
    """The sample that our process reads off a prediction is the scheduler's own estimate."""
    pipeline = pipelines(family_name)
    process = recognise(pipeline, "tiny").process(pipeline)
    noisy, prediction = torch.randn(2, 1, 4, 8, 8).unbind()
    if process.parameterization is Parameterization.FLOW:
        scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, use_dynamic_shifting=False, shift=1.0
        )
        scheduler.set_timesteps(4)
        t = scheduler.timesteps[1:2]
        step = scheduler.step(prediction, t[0], noisy).prev_sample
        # The Euler step of the flow: it moves along the prediction by the change of sigma.
        moved = noisy + (scheduler.sigmas[2] - scheduler.sigmas[1]) * prediction
        torch.testing.assert_close(step, moved)
        assert process(t, noisy)[1].item() == pytest.approx(scheduler.sigmas[1].item())
    else:
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        t = torch.tensor([500])
        theirs = scheduler.step(prediction, 500, noisy).pred_original_sample
        alpha, sigma = process(t, noisy)
        ours = process.parameterization.to_sample(noisy, prediction, alpha, sigma)
        # Theirs is computed in float32 from the start.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_rows_are_a_part_of_the_batch(pipelines, family_name):
    pipeline = pipelines(family_name)
    family, noisy, t, text, sizes = random_batch(pipeline)
    network, rows = network_of(pipeline), torch.tensor([1, 2])
    part = family.denoiser(network, text, sizes)(noisy[rows], t[rows], rows)
    alone = family.denoiser(network, {k: v[rows] for k, v in text.items()}, sizes[rows])
    assert torch.equal(part, alone(noisy[rows], t[rows]))


class Wrapped(torch.nn.Module):
    """Hides the network's attributes as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_a_wrapped_network_is_fine(pipelines, family_name):
    pipeline = pipelines(family_name)
    family, noisy, t, text, sizes = random_batch(pipeline)
    network = network_of(pipeline)
    wrapped = family.denoiser(Wrapped(network), text, sizes)
    assert torch.equal(wrapped(noisy, t), family.denoiser(network, text, sizes)(noisy, t))


def test_text_and_time_matter(pipelines, family_name):
    pipeline = pipelines(family_name)
    family, noisy, t, text, sizes = random_batch(pipeline)
    network = network_of(pipeline)
    prediction = family.denoiser(network, text, sizes)(noisy, t)
    for key in text:
        other = {**text, key: text[key].roll(1, 0)}
        assert not torch.equal(family.denoiser(network, other, sizes)(noisy, t), prediction)
    assert not torch.equal(family.denoiser(network, text, sizes)(noisy, t.roll(1)), prediction)


def test_low_precision_stays_inside_the_network(pipelines, family_name):
    pipeline = pipelines(family_name)
    family, noisy, t, text, sizes = random_batch(pipeline)
    exact = family.denoiser(network_of(pipeline), text, sizes)(noisy, t)
    network = copy.deepcopy(network_of(pipeline)).to(torch.bfloat16)
    noisy.requires_grad_()
    rounded = family.denoiser(network, text, sizes)(noisy, t)
    assert rounded.dtype == torch.float32
    # bfloat16 keeps 8 bits, and some ten layers add their errors.
    assert (rounded - exact).norm() < 0.1 * exact.norm()
    (gradient,) = torch.autograd.grad(rounded.square().sum(), noisy)
    assert gradient.dtype == torch.float32
    # Not all of it: sums of 8-bit numbers cancel exactly now and then.
    assert gradient.ne(0).float().mean() > 0.99


def test_sides_may_be_any_multiple(pipelines, family_name):
    pipeline = pipelines(family_name)
    family, _, t, text, sizes = random_batch(pipeline, batch=1)
    for height, width in ((3, 5), (7, 4)):
        shape = (1, 4, height * family.multiple // 2, width * family.multiple // 2)
        noisy = torch.randn(shape)
        answer = family.denoiser(network_of(pipeline), text, sizes)(noisy, t)
        assert answer.shape == noisy.shape


def test_real_models_need_multiples_of_8_or_16(pipelines, family_name):
    """The tiny VAEs halve the sides once, the real ones three times."""
    expected = {"sd1": 8, "sd2": 8, "sdxl": 8, "sd3": 16, "flux": 16}[family_name]
    assert 4 * recognise(pipelines(family_name), "tiny").multiple == expected


def test_default_targets_are_layers_of_the_network(pipelines, family_name):
    pipeline = pipelines(family_name)
    names = [name for name, _ in network_of(pipeline).named_modules()]
    for target in recognise(pipeline, "tiny").default_targets:
        assert any(name.endswith(f".{target}") for name in names), target


def test_time_ids_of_uncropped_and_cropped_images():
    uncropped = time_ids(torch.tensor([[32, 40]]))
    assert uncropped.tolist() == [[32.0, 40.0, 0.0, 0.0, 32.0, 40.0]]
    cropped = torch.tensor([[600, 800, 0, 100, 512, 512]])
    assert torch.equal(time_ids(cropped), cropped.float())


def test_sdxl_without_sizes_says_so(pipelines):
    family, noisy, t, text, _ = random_batch(pipelines("sdxl"))
    with pytest.raises(ValueError, match="sizes"):
        family.denoiser(pipelines("sdxl").unet, text)(noisy, t)


def test_captions_are_cut_beyond_what_is_read(pipelines, family_name):
    pipeline = pipelines(family_name)
    family = recognise(pipeline, "tiny")
    tokenizer, length = family.text_limit(pipeline)
    assert length == {"sd3": 256, "flux": 512}.get(family_name, 77)
    # The tiny tokenizers make one token of each letter of a word; special tokens count too.
    special = len(tokenizer("a").input_ids) - 1
    fits, longer = ("a" * (length - special), "a" * (length - special + 1))
    assert family.cut_captions(pipeline, ["", longer, fits, longer]) == [1, 3]
    assert family.cut_captions(pipeline, []) == []


def test_without_t5_sd3_reads_what_clip_reads():
    pipeline = sd3_without_t5()
    family = recognise(pipeline, "tiny")
    assert family.text_limit(pipeline)[1] == 77
    text = family.encode_text(pipeline, ["a cat"])["text"]
    assert text.shape == (1, 77 + 256, 32)
    assert not text[:, 77:].any()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_the_scheduler_says_what_is_predicted(name, prediction):
    pipeline = make_pipeline(name)
    pipeline.scheduler.register_to_config(prediction_type=prediction)
    family = recognise(pipeline, "tiny")
    assert (family.name, family.process(pipeline).parameterization) == (name, prediction)


@pytest.mark.parametrize("channels", [8, 9])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_editing_and_inpainting_networks_are_refused(name, channels):
    pipeline = make_pipeline(name)
    pipeline.unet = changed(pipeline.unet, in_channels=channels)
    with pytest.raises(InputError, match=rf"takes {channels} channels.*takes 4.*base model"):
        recognise(pipeline, "it")


def test_flux_fill_is_refused():
    pipeline = make_pipeline("flux")
    pipeline.transformer = changed(pipeline.transformer, in_channels=96, out_channels=16)
    with pytest.raises(InputError, match="takes 96 channels"):
        recognise(pipeline, "it")


def test_the_refiner_is_refused():
    pipeline = make_pipeline("sdxl")
    pipeline.text_encoder = pipeline.tokenizer = None
    with pytest.raises(InputError, match="refiner"):
        recognise(pipeline, "it")


def test_schedulers_that_do_not_say_how_it_was_trained_are_refused():
    pipeline = make_pipeline("sdxl")
    pipeline.scheduler = EDMEulerScheduler()
    with pytest.raises(InputError, match="scheduler of it"):
        recognise(pipeline, "it")
    flow = make_pipeline("sd3")
    flow.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    with pytest.raises(InputError, match="FlowMatchEuler"):
        recognise(flow, "it")


@pytest.mark.parametrize("name", ["KandinskyPipeline", "FluxKontextPipeline", None])
def test_unknown_pipelines_are_refused_by_name(name):
    with pytest.raises(InputError, match=r"known family.*FLUX\.1"):
        pipeline_class(name, "it")
