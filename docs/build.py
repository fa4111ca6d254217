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


def build(out: Path) -> int:
    """Build the site into a folder that is new or holds an older site, and return the number of languages that failed.

    Raises:
        SystemExit: The folder holds other files.
    """
    if out.exists() and any(out.iterdir()) and not (out / "searchindex.js").is_file():
        sys.exit(f"Expected the folder of the site to be new or to hold a site, but {str(out)!r} holds other files.")
    shutil.rmtree(out, ignore_errors=True)
    return sum(_build_language(language, out) != 0 for language in LANGUAGES)


def _build_language(language: Language, site: Path) -> int:
    out = site / language.folder
    with tempfile.TemporaryDirectory() as name:
        pages, doctrees = Path(name, "pages"), Path(name, "doctrees")
        stage(language, pages, site, reference_pages() if language is ENGLISH else {})
        options = ["-q", "--fail-on-warning", "-D", f"language={language.code}"]
        options += ["-D", f"html_use_index={int(language is ENGLISH)}"]  # the others have no reference
        code = build_main([*options, "-c", str(ROOT / "docs/builder"), "-d", str(doctrees), str(pages), str(out)])
    write_notebooks(language, out / "notebooks")
    return code


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")))
