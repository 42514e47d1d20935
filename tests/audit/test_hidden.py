"""Features of a denoiser: pooled outputs of its blocks, in the order of the samples."""

import torch
from diffusers.models.attention import FeedForward
from torch import nn

from latent_robust.audit import noisy_views
from latent_robust.audit.hidden import feature_blocks, hidden_features
from latent_robust.core import NoiseProcess

PROCESS = NoiseProcess.flow()


class Tokens(nn.Module):
    """Takes (B, C, H, W) as a sequence, as a transformer does."""

    def __init__(self):
        super().__init__()
        self.ff, self.ff_context = FeedForward(3), FeedForward(3)

    def forward(self, x):
        return self.ff(x.flatten(2).mT).mT.view(x.shape)


def test_features_are_mean_and_spread_of_each_channel():
    block = nn.Identity()
    x = torch.randn(4, 3, 5, 6)
    with hidden_features([block]) as features:
        block(x)
        images = features()
        block(x.flatten(2).mT)
        tokens = features()
    expected = torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], 1)
    assert torch.allclose(images, expected, atol=1e-6)
    assert torch.allclose(tokens, expected, atol=1e-6)
    assert not block._forward_hooks


def test_blocks_of_a_transformer_are_those_of_its_image_tokens():
    network = Tokens()
    assert feature_blocks(network) == [network.ff]


def test_views_come_in_the_order_asked_for_whatever_the_buckets():
    torch.manual_seed(0)
    network = Tokens().eval()
    samples = torch.randn(7, 3, 4, 4)
    asked = []

    def denoise_batch(indices):
        asked.append(list(indices))
        return samples[indices], lambda noisy, t: network(noisy)

    bucket = torch.tensor([0, 1, 0, 1, 0, 1, 1])
    indices = torch.tensor([6, 0, 3, 2, 5])
    view = noisy_views(denoise_batch, PROCESS, network, 0, bucket, batch=2)
    features = view(1e-3, 0, indices)  # hardly any noise: the features are the samples' own
    assert all(len({int(bucket[i]) for i in batch}) == 1 for batch in asked)
    t = PROCESS.time_of(1e-3).expand(7)
    with torch.no_grad(), hidden_features([network.ff]) as clean:
        network(PROCESS.add_noise(samples, 0 * samples, t))
        expected = clean()[indices]
    assert torch.allclose(features, expected, atol=0.02)
    assert torch.equal(view(1e-3, 0, indices), features)
    assert not torch.equal(view(1e-3, 1, indices), features)
