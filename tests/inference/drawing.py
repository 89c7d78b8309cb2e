"""Drawing in tests: labels and options as requests and samplings, and parameters that say something."""

import dataclasses

import jax

from jldm.inference.generate import Request, generate
from jldm.samplers.guidance import ClassifierFree


def draw(
  model,
  params,
  labels,
  *,
  sampler=None,
  steps=None,
  grid=None,
  scale=None,
  guidance=None,
  negative=None,
  **options,
):
  """Samples of labels: what is left out is the model's own."""
  kept = ("seed", "size", "rows", "estimates", "noise")
  fields = {name: options.pop(name) for name in kept if name in options}
  given = {"label": labels} | options.pop("given", {})
  against = ({},) if negative is None else ({"label": negative},)
  rule = guidance if scale is None else ClassifierFree(scale)
  changes = {"sampler": sampler, "steps": steps, "grid": grid, "guidance": rule}
  sampling = dataclasses.replace(
    model.sampling, **{name: value for name, value in changes.items() if value is not None}
  )
  return generate(
    model, params, Request(n=len(labels), given=given, against=against, **fields), sampling, **options
  )


def randomised(key, shapes):
  """Every parameter re-drawn: zero-initialised gates would make all labels alike."""
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])
