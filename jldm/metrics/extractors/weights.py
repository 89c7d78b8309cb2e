"""Weights of extractors from files: do they fit, which are they, and are they the official ones?

A file that `jldm convert` makes contains the sha256 of the published file (`source`) and the digest of its
arrays (`arrays_digest`).  Weights are official if the source is in OFFICIAL and the arrays still have that
digest.  Other weights, a cast to another precision or a later edit never pass.  The source itself is not
verified: a file with a false source is believed.
"""

from collections.abc import Mapping
import hashlib

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import numpy as np

from jldm.core.errors import UserError

OFFICIAL = {  # sha256 of a published file, and what the Fréchet distance of its features is called
  # pt_inception-2015-12-05-6726825d.pth of pytorch-fid, weights-inception-2015-12-05-6726825d.pth of
  # torch-fidelity
  "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": "FID"
}


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
  """A sha256 of names, shapes and values in float32, whatever the file or the order that they come in."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    value = np.ascontiguousarray(arrays[name], "<f4")
    digest.update(f"{name} {list(value.shape)}\n".encode())
    digest.update(value.tobytes())
  return digest.hexdigest()


def official_name(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str | None:
  """What the Fréchet distance may be called with these arrays of a file with that metadata, or None."""
  return OFFICIAL.get(metadata.get("source", "")) if metadata.get("digest") == arrays_digest(arrays) else None


def unpack_weights(
  arrays: Mapping[str, np.ndarray] | None, network: nn.Module, example: jax.Array, kind: str
) -> dict:
  """Arrays by flat name, such as "fc/kernel" -> the parameters of a network that is fed `example`, in
  float32.

  Raises:
    UserError: no arrays, or naming the first that is missing, in surplus, of another shape, or not
      of finite numbers.
  """
  if arrays is None:
    raise UserError(
      f"the extractor {kind!r} comes without weights; pass a file that jldm convert --kind {kind} made"
    )
  like = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
  wanted = flatten_dict(like, sep="/")
  if different := sorted(wanted.keys() ^ arrays.keys()):
    raise UserError(
      f"{different[0][:80]!r} is {'missing from' if different[0] in wanted else 'no part of'} the "
      f"weights of {kind!r}; make them by jldm convert --kind {kind} of the whole published file"
    )
  for name, leaf in wanted.items():
    if np.shape(arrays[name]) != leaf.shape:
      raise UserError(
        f"{name} of the weights of {kind!r} is {list(np.shape(arrays[name]))}; expected {list(leaf.shape)}"
      )
    if not np.isfinite(np.asarray(arrays[name], np.float32)).all():
      raise UserError(f"{name} of the weights of {kind!r} is not finite; give another file")
  return unflatten_dict({name: np.asarray(arrays[name], np.float32) for name in wanted}, sep="/")
