"""Build the documentation site: `python docs/build.py [FOLDER]`, into ``site/`` by default.

English pages are at the top, Chinese ones in ``zh/``, notebooks of the guide in ``notebooks/`` and ``zh/notebooks/``.
Nothing is downloaded, and a warning is an error. Needs the extra ``docs``.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from builder.contents import ENGLISH, LANGUAGES, ROOT, Language
from builder.notebooks import write_notebooks
from builder.reference import reference_pages
from builder.staging import stage
from sphinx.cmd.build import build_main


def build(out: Path, languages: tuple[Language, ...] = LANGUAGES) -> int:
    """Build the site in some languages, and return the number of those that failed."""
    shutil.rmtree(out, ignore_errors=True)
    return sum(_build_language(language, out) != 0 for language in languages)


def _build_language(language: Language, site: Path) -> int:
    out = site / language.folder
    with tempfile.TemporaryDirectory() as name:
        pages, doctrees = Path(name, "pages"), Path(name, "doctrees")
        stage(language, pages, site, reference_pages() if language is ENGLISH else {})
        options = ["-q", "--fail-on-warning", "--keep-going", "-D", f"language={language.code}"]
        code = build_main([*options, "-c", str(ROOT / "docs/builder"), "-d", str(doctrees), str(pages), str(out)])
    write_notebooks(language, out / "notebooks")
    return code


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")))
