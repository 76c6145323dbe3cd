"""Traces of requests: ``requests`` says which have one, ``records`` is what is noted, ``spans`` what becomes of it."""
