"""The commands of ``python -m numbabn``: one file each, and what they share beside them."""
