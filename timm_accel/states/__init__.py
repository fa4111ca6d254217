"""States on the disk, and the run folder; nothing here knows a trainer."""
