"""What the data of a run consist of, and what changed in them since a state was saved."""
