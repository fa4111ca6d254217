"""The commands of ``timm-accel``: each module has one function, whose signature is its command line."""
