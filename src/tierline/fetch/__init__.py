"""A model's files from where they are kept into a folder: resumed where it was interrupted, checked when whole."""
