"""Routers that know of each other's work: ``telling`` says what is done here, ``following`` hears what others do."""
