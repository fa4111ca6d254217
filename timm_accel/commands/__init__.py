"""The command ``timm-accel``: each command is a module with a public function of its name, whose arguments it takes.

Nothing is imported here, so that ``--help`` is fast: torch and timm are imported when a command runs.
"""
