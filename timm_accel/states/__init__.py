"""What a run leaves on the disk to resume from, and how its processes act as one; it knows no trainer."""
