"""Readers of image files: timm's kind, which give an open file or an image, and a label."""
