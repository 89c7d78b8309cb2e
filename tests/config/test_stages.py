"""Stages are an ordered list: they are addressed by name, and look back only."""

import dataclasses

import pytest

from jldm.config.experiment import Experiment, Need, Pretrained
from jldm.config.override import override
from jldm.config.serialize import differences, dumps, loads, to_data
from tests.config.examples import SMALL, refused

CODEC, DENOISER = SMALL.stages
STUDENT = dataclasses.replace(
  DENOISER, name="student", needs=(*DENOISER.needs, Need("teacher", "denoiser")), start="denoiser"
)
THREE = dataclasses.replace(SMALL, stages=(CODEC, DENOISER, STUDENT))


def test_a_stage_is_found_by_its_name():
  assert THREE.names == ("autoencoder", "denoiser", "student") and THREE.stage("student") is STUDENT
  assert THREE.last("codec") is CODEC and THREE.last("denoiser") is STUDENT and THREE.last("tower") is None
  assert THREE.earlier("denoiser") == (CODEC,) and THREE.earlier("autoencoder") == ()
  assert "there is no stage 'pupil'; expected one of autoencoder, denoiser, student" in refused(
    THREE.stage, "pupil"
  )
  assert THREE.with_stage(dataclasses.replace(DENOISER, steps=7)).stages[1].steps == 7


@pytest.mark.parametrize(
  ("stages", "message"),
  [
    (
      (),
      "stages has nothing; expected a tuple of Stage(name=…, objective=…), or Pretrained('…'), at least one",
    ),
    ((CODEC, DENOISER.objective), "stages has Stage, Diffusion; expected a tuple of Stage(name=…"),
    ([CODEC, DENOISER], "stages has list; expected a tuple of Stage(name=…"),
    ((CODEC, DENOISER, DENOISER), "two stages are named 'denoiser'; give one of them another name"),
    (
      (CODEC, dataclasses.replace(DENOISER, name="data")),
      "stage name 'data'; expected letters, digits and _, and none of data,",
    ),
    ((CODEC, dataclasses.replace(DENOISER, name="a/b")), "stage name 'a/b'; expected letters, digits and _"),
    ((CODEC, dataclasses.replace(DENOISER, name=5)), "stage name 5; expected letters, digits and _"),
    (
      (CODEC, dataclasses.replace(DENOISER, needs="codec")),
      "denoiser.needs='codec'; expected a tuple such as (Need('codec',",
    ),
    (
      (DENOISER, CODEC),
      "denoiser.needs: codec is 'autoencoder', which does not come before; expected no stage, since none "
      "comes",
    ),
    (
      (CODEC, STUDENT, DENOISER),
      "student.needs: teacher is 'denoiser', which does not come before; expected an earlier stage "
      "(autoencoder) or the path of a workdir",
    ),
    (
      (CODEC, dataclasses.replace(DENOISER, start="denoiser")),
      "denoiser.start is 'denoiser', which does not come before",
    ),
    (
      (CODEC, dataclasses.replace(DENOISER, needs=DENOISER.needs * 2)),
      "denoiser.needs has two of one role: codec, codec",
    ),
  ],
)
def test_stages_that_cannot_be(stages, message):
  assert message in refused(lambda: Experiment(stages=stages))


def test_a_stage_of_what_is_no_objective():
  odd = THREE.with_stage(dataclasses.replace(STUDENT, objective=DENOISER.objective.process))
  assert "student.objective is a Cosine; expected an objective such as Diffusion(...)" in refused(
    odd.last, "denoiser"
  )


def test_they_are_written_and_read():
  assert loads(dumps(THREE)) == THREE


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("student.start", "student", "student.start is 'student', which does not come before"),
    (
      "student.needs",
      "(Need('codec', 'student'),)",
      "student.needs: codec is 'student', which does not come before",
    ),
    (
      "student.needs",
      "Need('codec', 'w')",
      "student.needs: expected a tuple of Need(...), such as (), (A(),), got",
    ),
    ("studnet.steps", "5", "studnet.steps: Experiment has no field 'studnet'; did you mean 'student'?"),
    (
      "student.needs",
      "(Need('codec', 5),)",
      "source=5 of Need; expected text, as in Need('codec', 'autoencoder')",
    ),
    (
      "student",
      "Flow()",
      "student: expected Stage(...) or Pretrained(...), or one of its fields (name, objective,",
    ),
    ("stages", "()", "stages has nothing; expected a tuple of Stage("),
  ],
)
def test_an_override_of_a_stage_that_does_not_fit(path, text, message):
  assert message in refused(override, THREE, path, text)


def test_an_override_of_a_whole_stage_keeps_its_name():
  changed = override(THREE, "autoencoder", "Pretrained('runs/sd')")
  assert changed.stage("autoencoder") == Pretrained("runs/sd") and changed.names == THREE.names
  assert override(THREE, "denoiser", "Pretrained('runs/sd')").stage("denoiser") == Pretrained(
    "runs/sd", name="denoiser"
  )
  away = override(THREE, "student.needs", "(Need('codec', 'runs/digits'),)")
  assert away.stage("student").needs == (Need("codec", "runs/digits"),)


def test_differences_are_by_name():
  data = to_data(THREE)
  assert differences(data, to_data(override(THREE, "student.steps", "5"))) == ["student.steps: 1000 -> 5"]
  (line,) = differences(to_data(SMALL), data)
  assert line == "stages: ['autoencoder', 'denoiser'] -> ['autoencoder', 'denoiser', 'student']"
