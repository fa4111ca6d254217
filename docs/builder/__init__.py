"""The builder of the documentation site, which `docs/build.py` runs."""
