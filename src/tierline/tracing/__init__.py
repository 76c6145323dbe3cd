"""Traces over all programs: ``context`` is where work stands in one, ``spans`` are told of it, ``tracer`` delivers."""
