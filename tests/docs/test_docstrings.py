"""What is said of every public name: what it does, its arguments, shapes, errors, its source.

Held to are the functions and classes of the reference, with the methods and properties of these. A
method may say in a sentence what a function says in sections.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache
from operator import attrgetter
from typing import Any

from docstring import Docstring, has_shape
from public_names import CLASSES, FUNCTIONS, MEMBERS, found

import ncsn_fast as nf

CALLABLES = [*FUNCTIONS, *CLASSES, *MEMBERS]
SOURCE = re.compile(r"\b(?:18|19|20)\d\d\b")  # of a year: Song & Ermon 2019, equation 6

# Why no paper is the source of a name.
REASONS = {
    "it reads or writes files": """load_checkpoint save_checkpoint checkpoints.from_pretrained
        checkpoints.save_pretrained checkpoints.push_to_hub data.load_images data.load_pixels
        data.digits evaluation.classifier.load_classifier""",
    "it is raised": """CheckpointError SamplingError SamplingInterrupted TrainingError
        TrainingInterrupted device.capture.CaptureError""",
    "it only holds values": """Likelihood Table evaluation.quality.Quality reference.StepResult""",
    "it says how something is computed, not what": "prepare_for_inference use_backend",
    "it runs a method, whose table has the source": "sample Sampler",
    "it computes the specification of its name, in ncsn_fast.reference": """ops.sampler_update
        ops.begin_step ops.perturb ops.dsm_loss ops.dsm_loss_and_gradient ops.instance_norm_plus
        ops.activate ops.residual_add ops.resize_add ops.max_pool5""",
    "it is this package's own: a step of any sampler": """reference.sampler_update
        reference.begin_step""",
    "it is the derivative of what has a source": "reference.dsm_gradient",
    "it is a definition, whose formula is all": """reference.activated reference.residual_add
        reference.per_sample operators.Operator operators.Mask operators.Downsample operators.Blur
        operators.Fourier operators.MRI operators.MIMO operators.Dense operators.Scale
        guidance.Nonlinear""",
    "it is this package's own network": "MLPScore evaluation.classifier.Classifier",
    "it is what networks or guidances are made from": """models.ScoreNetwork Score Guidance
        guidance.NetworkGuidance guidance.Through guidance.Denoised posterior.LinearGuidance
        posterior.GaussianLikelihood posterior.ScoreScaled""",
    "it measures by functions that have their sources": "evaluation.quality.Reference",
    "it takes words of philox4x32": "noise.uniform noise.integers",
    "it checks or draws a seed, a step or ids": """noise.random_seed noise.chosen_seed
        noise.check_seed noise.as_sample_ids noise.sample_ids noise.seed_tensor
        noise.step_tensor""",
    "it calls another project, as that says": """compat.adapters.diffusers.score
        compat.adapters.azula.score compat.adapters.deepinv.score compat.adapters.deepinv.Physics
        compat.adapters.torchebm.score compat.adapters.sbi.score compat.adapters.sbi.register
        compat.adapters.sbi.sample""",
}
NOT_FROM_A_PAPER = {f"ncsn_fast.{name}" for names in REASONS.values() for name in names.split()}


def described(name: str) -> Any:
    return MEMBERS[name] if name in MEMBERS else found(name)


def owner(name: str) -> Any:
    """The class of a method; None of others."""
    return found(name.rpartition(".")[0]) if name in MEMBERS else None


@cache
def docstring(name: str) -> Docstring:
    """The docstring of a name, or of what it overrides."""
    own = Docstring(described(name))
    if name in MEMBERS and not own.text:
        return Docstring(getattr(owner(name), name.rpartition(".")[2]))
    return own


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """What a user gives it."""
    one = described(name)
    if inspect.isclass(one) and issubclass(one, BaseException):
        return {}  # the engine raises it
    given = dict(inspect.signature(one).parameters)
    if name in MEMBERS:
        given.pop("self", None)
        given.pop("cls", None)
    return given


def referred(name: str) -> list[Docstring]:
    """The docstrings that a docstring refers to: "the others as for :func:`normal`"."""
    shown_in = (name.rpartition(".")[0] if name in MEMBERS else name).rpartition(".")[0]
    one = described(name)
    scopes = [inspect.getmodule(one), one, owner(name), found(shown_in), nf]
    docs = []
    for reference in docstring(name).references:
        reference = re.sub(r"^nf\.", "ncsn_fast.", reference)
        if reference.startswith("ncsn_fast."):
            docs.append(Docstring(found(reference)))
        else:
            scope = next(scope for scope in scopes if hasattr(scope, reference.partition(".")[0]))
            docs.append(Docstring(attrgetter(reference)(scope)))
    return docs


def telling(name: str) -> list[Docstring]:
    """The docstrings that may tell of its parameters: its own first, then what it overrides."""
    docs = [docstring(name), *referred(name)]
    if "as above" in docs[0].text:
        docs.append(Docstring(inspect.getmodule(described(name))))
    if name in MEMBERS:
        bases = [vars(base).get(name.rpartition(".")[2]) for base in owner(name).__mro__]
        docs += map(Docstring, [owner(name), *filter(None, bases)])
    return docs


def body(name: str) -> ast.AST:
    function = described(name)
    if inspect.isclass(function):
        names = "__post_init__", "__init__"
        function = next((vars(function)[name] for name in names if name in vars(function)), None)
        if not inspect.isfunction(function) or "<string>" in function.__code__.co_filename:
            return ast.Module([], [])  # of a dataclass, or of C
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def untold(name: str) -> list[str]:
    """Its parameters that stand neither in Args, its own or of what it refers to, nor in a sentence
    in place of Args."""
    docs = telling(name)
    known = {parameter for doc in docs for parameter in doc.parameters}
    in_words = name in MEMBERS or "Args" not in docs[0].sections
    return [
        parameter
        for parameter in parameters(name)
        if parameter not in known and not (in_words and docs[0].has_word(parameter))
    ]


def shapeless(name: str) -> list[str]:
    """Its parameters that are tensors, of which no shape is told."""
    found = []
    for parameter, given in parameters(name).items():
        if re.match(r"(Tensor|Measurement)\b", str(given.annotation)):
            docs = telling(name)
            told = [doc.parameters[parameter] for doc in docs if parameter in doc.parameters]
            if not any(map(has_shape, told or [docs[0].text])):
                found.append(parameter)
    return found


def raised(name: str) -> set[str]:
    """The errors that its own lines raise."""
    errors = (
        getattr(node.exc, "func", node.exc)
        for node in ast.walk(body(name))
        if isinstance(node, ast.Raise) and node.exc is not None
    )
    names = {error.id for error in errors if isinstance(error, ast.Name)}
    return {name for name in names - {"NotImplementedError"} if name[0].isupper()}


def test_each_says_what_it_is():
    silent = [name for name in CALLABLES if not docstring(name).text]
    of_classes = {name: Docstring(owner(name)).parameters for name in silent if name in MEMBERS}
    assert [n for n in silent if n.rpartition(".")[2] not in of_classes.get(n, {})] == []


def test_every_parameter_is_told():
    assert {name: untold(name) for name in CALLABLES if untold(name)} == {}


def test_every_tensor_has_a_shape():
    assert {name: shapeless(name) for name in CALLABLES if shapeless(name)} == {}


def test_functions_with_sections_have_one_of_what_they_return():
    silent = [
        name
        for name in FUNCTIONS
        if inspect.signature(described(name)).return_annotation not in ("None", None)
        and "Args" in docstring(name).sections
        and "Returns" not in docstring(name).sections
    ]
    assert silent == []


def test_every_tensor_that_is_returned_has_a_shape():
    returned = {
        name: str(inspect.signature(described(name)).return_annotation)
        for name in (*FUNCTIONS, *MEMBERS)
    }
    tensors = [name for name, kind in returned.items() if re.match(r"(tuple\[)?Tensor\b", kind)]
    assert len(tensors) > 50
    told = {
        name: any(has_shape(doc.sections.get("Returns", doc.text)) for doc in telling(name))
        for name in tensors
    }
    assert [name for name in tensors if not told[name]] == []


def test_every_error_that_a_name_raises_by_itself_is_told():
    silent = {
        name: [error for error in raised(name) if not docstring(name).has_word(error)]
        for name in CALLABLES
    }
    assert {name: errors for name, errors in silent.items() if errors} == {}


def test_mathematics_has_its_source():
    public = {*FUNCTIONS, *CLASSES}
    assert public >= NOT_FROM_A_PAPER
    sourced = {name for name in public if SOURCE.search(docstring(name).text)}
    assert sorted(public - sourced - NOT_FROM_A_PAPER) == []
    assert sorted(sourced & NOT_FROM_A_PAPER) == []
