"""The methods of `volrec explain`, by name: what each says, its options, and where its function is.

A method is a function ``(network, x, output, **options)`` of a network, clips (B, C, T', H, W) as the network reads
them and the number of an output; it gives a map (B, T', H, W) float32, positive where the clip speaks for the output. A
new one is an entry of `METHODS`; `tests/explain/test_explain_methods.py` asks the same of every one. Nothing heavy is
imported before a method is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Literal

from volrec.errors import ConfigError

__all__ = ["METHODS", "Method", "find_method", "list_methods"]


_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True)
class Method:
    """One way to say where a network looked.

    Attributes
    ----------
    name : str
        As users give it.
    home : str
        ``"module:function"`` within `volrec.explain`.
    summary : str
        What a map of it says, for people.
    signed : bool
        Whether values below 0 speak against the output; otherwise there are none.
    per_slice : {"sum", "max", "mean"}
        How the value of a slice comes of those of its voxels: their sum where all voxels add up to something, the
        maximum of a smooth map, the mean where a slice has one value.
    options : mapping
        Options that users may set, with their defaults.
    reads : frozenset of str
        What the function is told beside its options: ``"empty"``, the value of an empty canvas (C,); ``"slices"``,
        which slice of the study stands at each position of a clip.
    complete : bool
        Whether a clip's values add up to the output for it less that for an empty clip: measured and reported.
    package : str
        What has to be installed for it, with the extra ``explain``; empty where nothing.
    only : str
        Which networks it is for, where not for all: it refuses others with `ConfigError`. Empty for all.
    """

    name: str
    home: str
    summary: str
    signed: bool
    per_slice: Literal["sum", "max", "mean"]
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    reads: frozenset[str] = frozenset()
    complete: bool = False
    package: str = ""
    only: str = ""

    def function(self) -> Callable[..., Any]:
        """Return the function; its module is imported now.

        Raises
        ------
        ConfigError
            The package that it needs is not installed: with the line that installs it.
        """
        if self.package and find_spec(self.package) is None:
            raise ConfigError(
                f"the method {self.name} needs the package {self.package}, which is not installed.",
                remedy="Install it with `pip install 'volrec[explain]'`, or use one of "
                f"{', '.join(name for name, one in METHODS.items() if not one.package)}.",
                where="method",
                code="missing-package",
            )
        module, name = self.home.split(":")
        return getattr(import_module(f"volrec.explain.{module}"), name)

    def checked(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return all options: those given, and the defaults of the others.

        Raises
        ------
        ConfigError
            An option that the method does not have, or a value of another kind than its default.
        """
        given = dict(options or {})
        for name, value in given.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"the method {self.name} has no option '{name}'.",
                    remedy=f"Its options: {known}.",
                    where=name,
                    code="explain-option",
                )
            kind = type(self.options[name])
            if kind is not type(None) and not isinstance(value, (int, float) if kind is float else kind):
                raise ConfigError(
                    f"{name} must be {_KINDS[kind]}, got {value!r}.",
                    remedy=f"The default is {self.options[name]!r}.",
                    where=name,
                    code="explain-option",
                )
        return {**self.options, **given}


def _own(name: str, home: str, summary: str, **facts: Any) -> Method:
    return Method(name, home, summary, **facts)


def _captum(name: str, function: str, summary: str, **facts: Any) -> Method:
    return Method(f"captum:{name}", f"captum_methods:{function}", summary, package="captum", **facts)


_EMPTY = frozenset({"empty"})

METHODS: dict[str, Method] = {
    one.name: one
    for one in (
        _own(
            "gradcam",
            "gradcam:gradcam",
            "Grad-CAM in 3D: a smooth map of where late layers found what speaks for the output.",
            signed=False,
            per_slice="max",
        ),
        _own(
            "gradcam-slicewise",
            "gradcam:gradcam_slicewise",
            "Grad-CAM of each slice in the context of the others: slices that the network overlooks stay dark.",
            signed=False,
            per_slice="max",
        ),
        _own(
            "occlusion",
            "occlusion:occlude_slices",
            "How far the output falls when a slice is covered: one value a slice.",
            signed=True,
            per_slice="mean",
            options={"slab": 1, "fill": "median"},
            reads=frozenset({"empty", "slices"}),
        ),
        _own(
            "occlusion-3d",
            "occlusion:occlude_blocks",
            "How far the output falls when a block of voxels is covered; slow for 3D networks.",
            signed=True,
            per_slice="max",
            options={"block": None, "stride": None, "fill": "median"},
            reads=_EMPTY,
        ),
        _own(
            "integrated-gradients",
            "gradients:integrated_gradients",
            "What each voxel adds to the output on the way from an empty clip; voxels add up to the output.",
            signed=True,
            per_slice="sum",
            options={"steps": 32},
            reads=_EMPTY,
            complete=True,
        ),
        _own(
            "deconvnet",
            "deconvnet:deconvnet",
            "Deconvnet: the network run in reverse from what speaks for the output, back to the voxels it reacts to.",
            signed=False,
            per_slice="sum",
            options={"start": "output", "feature": None},
            only="convolutions, pools and ReLUs, without gates, attention and recurrent layers",
        ),
        _own(
            "slice-scores",
            "curves:slice_scores",
            "The output for each slice alone, without the others: one value a slice.",
            signed=True,
            per_slice="mean",
            only="networks that encode slices one by one",
        ),
        _own(
            "attention",
            "curves:attention",
            "How much of the network's attention each slice has: one value a slice; it does not say for which output.",
            signed=False,
            per_slice="mean",
            only="networks with attention over slices",
        ),
        _own(
            "vlad",
            "curves:vlad",
            "What each place adds to the output through the words that it is put into; places add up to the output.",
            signed=True,
            per_slice="sum",
            options={"word": None},
            only="networks with words (actionvlad)",
        ),
        _captum("saliency", "saliency", "Size of the gradient.", signed=False, per_slice="sum"),
        _captum(
            "smoothgrad",
            "smoothgrad",
            "Mean size of the gradient over noisy clips.",
            signed=False,
            per_slice="sum",
            options={"samples": 16, "noise": 0.1},
        ),
        _captum("input-x-gradient", "input_x_gradient", "Voxel times gradient.", signed=True, per_slice="sum"),
        _captum(
            "integrated-gradients",
            "integrated",
            "Integrated gradients, as captum computes them.",
            signed=True,
            per_slice="sum",
            options={"steps": 32},
            reads=_EMPTY,
            complete=True,
        ),
        _captum("deeplift", "deeplift", "DeepLIFT against an empty clip.", signed=True, per_slice="sum", reads=_EMPTY),
        _captum(
            "gradient-shap",
            "gradient_shap",
            "Gradients between noisy clips and an empty one.",
            signed=True,
            per_slice="sum",
            options={"samples": 16, "noise": 0.05},
            reads=_EMPTY,
        ),
        _captum("guided-backprop", "guided_backprop", "Guided backpropagation.", signed=True, per_slice="sum"),
    )
}
"""The methods by name: those of volrec, then those of captum."""


def list_methods() -> list[str]:
    """Return the names of all methods."""
    return list(METHODS)


def find_method(name: str) -> Method:
    """Return the method of a name.

    Raises
    ------
    ConfigError
        An unknown name; the methods are listed.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    raise ConfigError(
        f"there is no method '{name}'" + (f" (did you mean '{near[0]}'?)." if near else "."),
        remedy=f"Methods: {', '.join(METHODS)}.",
        where="method",
        code="explain-method",
    )
