"""Readers in timm's sense: each item is an open file or a decoded image, and a label."""
