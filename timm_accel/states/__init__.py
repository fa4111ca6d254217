"""States on the disk, the run folder, and the consensus of the ranks; nothing here knows a trainer."""
