"""Traces of requests: ``records`` is what is noted on the way, ``spans`` what becomes of it, ``export`` who gets it."""
