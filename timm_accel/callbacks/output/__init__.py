"""What a run shows to a person: the progress bar, the metrics of each epoch, and the results at its end."""
