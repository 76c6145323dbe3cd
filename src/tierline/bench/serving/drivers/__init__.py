"""Other load generators run in our place: their command lines from our settings, our records from their files."""
