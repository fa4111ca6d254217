"""The processes of a run: how they were launched, what they agree on, what each of them does."""
