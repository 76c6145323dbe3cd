"""Taking endpoints over from HyperPod's operator, and giving them back: looked at, saved, and undone if wanted."""
