"""The VQ autoencoder of latent diffusion, Rombach et al. 2022 (2112.10752), appendix G: the networks
of `kl`, and codes.

Its latents are the encoder's output *before* quantisation, which is taken as a part of the decoder:
a denoiser lives in them, and what it draws is quantised before it is decoded.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.models.autoencoders.kl import Decoder, Encoder, check_images, factor_of, shared_fields
from jldm.models.autoencoders.posterior import Bottleneck, Gaussian, point
from jldm.models.autoencoders.quantize import FSQ, Codebook

Array = jax.Array


class VQAutoencoder(nn.Module):
  """Encodes images in [-1, 1] to latents that are quantised to one of `quantizer.size` codes each, and
  decodes them.

  Fields as KLAutoencoder's, but both networks have `features` on the side of the latents.  A
  Codebook is read from the collection "codebook", never written: `bottleneck` and `refresh` return
  it anew.
  """

  quantizer: Codebook | FSQ = Codebook()
  channels: int = 3
  latent_channels: int = 4
  widths: tuple[int, ...] = (128, 256, 512, 512)
  resnets: int = 2
  groups: int = 32
  patch: int = 1
  dtype: str = "float32"
  attention: tuple[int, ...] = ()
  middle_attention: bool = True
  features: int = 0
  remat: str = "none"

  @property
  def factor(self) -> int:
    return factor_of(self)

  def setup(self):
    features = self.features or self.latent_channels
    self.encoder = Encoder(features, *shared_fields(self))
    self.decoder = Decoder(self.channels, *shared_fields(self))
    self.before = nn.Conv(self.latent_channels, (1, 1), dtype=self.dtype)
    self.after = nn.Conv(features, (1, 1), dtype=self.dtype)

  def codebook(self) -> dict:
    """The quantiser's state, read; zeros at the network's own `init`."""
    shapes = self.quantizer.shapes(self.latent_channels)
    if self.is_initializing():
      for name, shape in shapes.items():
        self.put_variable("codebook", name, jnp.zeros(shape, jnp.float32))
    return {name: self.get_variable("codebook", name) for name in shapes}

  def encode(self, x: Array) -> Gaussian:
    """x [B, H, W, C] in [-1, 1] -> a point [B, H / factor, W / factor, latent_channels] before
    quantisation, in float32.

    Raises:
      ValueError: H or W is not divisible by `factor`, or C is not `channels`.
    """
    check_images(self, x)
    return point(self.before(self.encoder(x)).astype(jnp.float32))

  def quantize(self, z: Array) -> tuple[Array, Array]:
    """z [B, h, w, latent_channels] -> (quantised, codes int [B, h, w])."""
    return self.quantizer.quantize(self.codebook(), z)

  def decode(self, z: Array) -> Array:
    """z [B, h, w, latent_channels], raw, is quantised -> images [B, h factor, w factor, C] in float32,
    near [-1, 1].
    """
    return self.decoder(self.decoder_input(z)).astype(jnp.float32)

  def decoder_input(self, z: Array) -> Array:
    """z [B, h, w, latent_channels], raw -> what the decoder's first convolution is fed, as large."""
    return self.after(self.quantize(z)[0])

  def bottleneck(self, posterior: Gaussian) -> Bottleneck:
    """The commitment [B], a mean over the values of z, and the codebook that has followed this batch."""
    z, state = posterior.mean, self.codebook()
    if not state:
      return Bottleneck({}, {}, {})
    quantized, codes = self.quantizer.quantize(state, z)
    commitment = jnp.square(z - jax.lax.stop_gradient(quantized)).mean((1, 2, 3))
    extra = {"codebook": self.quantizer.update(state, z, codes)}
    return Bottleneck({"commitment": commitment}, self.quantizer.metrics(state), extra)

  def refresh(self, x: Array, key: Array) -> dict:
    """The collections besides the parameters with dead codes started anew from latents of x [B, H, W, C]."""
    state = self.codebook()
    return {"codebook": self.quantizer.refresh(state, self.encode(x).mean, key)} if state else {}

  def __call__(self, x: Array, keys: Array) -> tuple[Array, Gaussian]:
    """x [B, H, W, C], keys [B] -> (reconstruction, latents)."""
    posterior = self.encode(x)
    return self.decode(posterior.sample(keys)), posterior
