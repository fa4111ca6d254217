"""The configuration of Sphinx for both languages; `docs/build.py` gives the language."""

from pathlib import Path, PurePosixPath
from typing import Any

import sphinx.search
from docutils import nodes

import timm_accel
from builder.chinese_search import SearchChinese
from builder.contents import CHINESE, ENGLISH, address, pages, twin
from builder.notebooks import chapters
from builder.reference import process_docstring, process_signature

project = "timm_accel"
version = release = timm_accel.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4
myst_url_schemes = ["http", "https", "mailto", "site"]

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

locale_dirs = ["locale"]
html_search_scorer = str(Path(__file__).parent / "scorer.js")

html_theme = "furo"
html_title = "timm_accel"
html_favicon = "static/icon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_domain_indices = False
copybutton_exclude = ".linenos, .gp, .go"

sphinx.search.languages["zh"] = SearchChinese


def add_page_links(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Tell the template of a page where its twin in the other language is, and its notebook."""
    here, other = (CHINESE, ENGLISH) if app.config.language == CHINESE.code else (ENGLISH, CHINESE)
    page = {found: page for page, found in pages(here).items()}.get(name, "")
    top = "../" * len(PurePosixPath(here.folder, name).parent.parts)
    context["other_language"], context["other_code"] = other.name, other.code.replace("_", "-")
    context["other_address"] = top + address(twin(page, other) or other.home)
    notebook = chapters(here).get(page)
    context["notebook"] = f"{'../' * name.count('/')}notebooks/{notebook}" if notebook else None


def resolve_site_links(app: Any, doctree: nodes.document, name: str) -> None:
    """Make addresses of the links that lead to the site's other language."""
    for reference in doctree.findall(nodes.reference):
        if reference.get("refuri", "").startswith("site:"):
            reference["refuri"] = reference["refuri"].removeprefix("site:")
            reference["internal"] = True


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-docstring", process_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", process_signature)
    app.connect("doctree-resolved", resolve_site_links)
    app.connect("html-page-context", add_page_links)
