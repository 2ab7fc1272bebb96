"""How the documentation is built: `sphinx-build -W -b html docs docs/_build`."""

import re

from docutils.nodes import SkipNode
from docutils.utils.math import latex2mathml

import hashsolve

project = "hashsolve"
copyright = "the authors of hashsolve"
version = release = hashsolve.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_click",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!hashsolve|torch_glue).*")]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "none"  # numpydoc's sections say them
autodoc_member_order = "bysource"
smartquotes = False  # -- is an option's
default_role = "py:obj"  # `name` in a docstring is a link to it
numpydoc_show_class_members = False
numpydoc_validation_checks = {
    *("GL03", "GL05", "GL06", "GL07", "GL08", "SS01", "SS03", "SS04"),
    *("PR01", "PR02", "PR05", "PR10", "RT02", "RT04", "RT05"),
}

# result types describe their attributes, which are their parameters too
numpydoc_validation_overrides = {"PR01": [r"(?m)^ *Attributes\n *-----"]}
numpydoc_validation_exclude = {
    r"\.(Network|ResidualNetwork|Status)$",  # protocols and enums take no arguments
    r"testing\.(LAWS|STANDARD|fixed_scales|quadratics)$",  # data, or hidden by a decorator
}

html_theme = "furo"
html_title = f"hashsolve {version}"
html_static_path = ["_static"]
html_css_files = ["figures.css"]
html_copy_source = False
html_math_renderer = "mathml"


def mathml(block):
    """A visitor that writes a formula as MathML, which browsers draw by themselves."""

    def visit(self, node):
        formula = latex2mathml.tex2mathml(node.astext(), as_block=block)
        formula = formula.replace("<mo>", '<mo stretchy="false">')  # norms and braces stay small
        self.body.append(f'<div class="math">{formula}</div>' if block else formula)
        raise SkipNode

    return visit, None


_MARKUP = re.compile(r"(?<!^)[|*](?=\w)|(?<=\w)\|")


def escape(*event):
    """Make |W| and *kernel, which docstrings and help mean as they stand, no markup."""
    lines = event[-1]
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...", "| ")):
            parts = re.split(r"(``.*?``|`.*?`)", line)
            parts[::2] = [_MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def examples(app, ctx, lines):
    """Show the commands in a help text as they are typed."""
    text = "\n".join(lines)
    text = re.sub(r"(?m)(^\| .*\n?)+", lambda m: "::\n\n" + m[0].replace("| ", "    "), text)
    lines[:] = text.split("\n")


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=400)  # before numpydoc
    app.connect("sphinx-click-process-description", escape)
    app.connect("sphinx-click-process-description", examples)
    app.add_html_math_renderer("mathml", mathml(block=False), mathml(block=True))
